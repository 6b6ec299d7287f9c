"""Names of a prefix mount: what is shown, and what a name means."""

from __future__ import annotations

import pytest

from litereplica.fuse.prefix_names import Parts, Patterns, parse, refusal


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"acme.db", Parts("acme.db", "")),
        (b"acme.db-wal", Parts("acme.db", "-wal")),
        (b"acme.db-shm", Parts("acme.db", "-shm")),
        (b"acme.db-pos", Parts("acme.db", "-pos")),
        (b"acme.db-journal", None),
        (b"acme.db-wal-wal", None),
        (b"-wal", None),
        (b".at", None),
        (b".litereplica", None),
        (b"new\nline", None),
        (b"\xff", None),
        ("é".encode(), Parts("é", "")),
        (b"x" * 240 + b"-pos", Parts("x" * 240, "-pos")),
        (b"x" * 241, None),
    ],
)
def test_a_name_is_that_of_a_database_or_of_one_of_its_files(name: bytes, expected: Parts | None) -> None:
    assert parse(name) == expected


def test_names_that_cannot_be_shown_have_a_reason() -> None:
    assert refusal("acme.db") is None
    for name in ("a-wal", "a-journal", ".at", "..", "a\x7f", "x" * 241):
        assert refusal(name)


PATHS = ("a.db", "test.db", "eu/a.db", "eu/test.db", "eu/west/a.db", "test/x.db", "us/b.sqlite")


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), PATHS),
        (("*.sqlite",), (), ("us/b.sqlite",)),
        (("eu/*.db",), (), ("eu/a.db", "eu/test.db")),
        (("eu/*",), ("test*",), ("eu/a.db",)),
        (("eu/**",), ("test*",), ("eu/a.db", "eu/west/a.db")),
        ((), ("test",), tuple(path for path in PATHS if not path.startswith("test/"))),
        ((), ("eu",), ("a.db", "test.db", "test/x.db", "us/b.sqlite")),
        ((), ("eu/west",), tuple(path for path in PATHS if path != "eu/west/a.db")),
        (("a.db", "us/*"), (), ("a.db", "eu/a.db", "eu/west/a.db", "us/b.sqlite")),
    ],
)
def test_patterns_choose_databases(
    include: tuple[str, ...], exclude: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    patterns = Patterns(include, exclude)
    chosen = tuple(path for path in PATHS if patterns.includes(path))
    assert chosen == expected
    for path in chosen:  # whatever is above a database that is shown can be seen
        parts = path.split("/")
        assert all(patterns.may_show("/".join(parts[: count + 1])) for count in range(len(parts)))
