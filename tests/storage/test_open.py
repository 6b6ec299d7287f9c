"""Opening what a URL names, and that every table of schemes has them all."""

from __future__ import annotations

from pathlib import Path

from litereplica.config.replica import READERS
from litereplica.ltxstore.store import LAYOUTS
from litereplica.storage.open import OPENERS, open_storage
from litereplica.storage.url import SCHEMES
from litereplica.storage.wrappers import RetryStorage


def test_every_scheme_is_in_every_table() -> None:
    assert set(SCHEMES) == set(OPENERS) == set(LAYOUTS) == set(READERS)


async def test_open_storage_gives_what_the_url_names(tmp_path: Path) -> None:
    async with open_storage(f"file://{tmp_path}/replica") as storage:
        assert isinstance(storage, RetryStorage)
        assert storage.url == f"file://{tmp_path}/replica"
        await storage.put("k", b"x")
    assert (tmp_path / "replica" / "k").read_bytes() == b"x"


def test_the_url_of_an_s3_storage_is_canonical() -> None:
    storage = open_storage("s3://bucket/a b/?region=eu&endpoint=localhost:9000")
    assert storage.url == "s3://bucket/a%20b?endpoint=http://localhost:9000&region=eu"
