"""A configuration that somebody else wrote, or that was damaged: one clear line, in bounds, and no secret in it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from litereplica.errors import ExitCode
from tests.helpers.json_language import require_printed
from tests.security.limited import Ended, limited, require_orderly

DATABASE = "dbs:\n  - path: /srv/app.db\n    replica: {path: /srv/replica}\n"
SECRET = "very-secret-value"


def chain(levels: int) -> str:
    """Mappings that merge each other, so that each is as large as all before it together."""
    lines = ["a0: &a0 {k0: 1}"]
    lines += [f"a{i}: &a{i} {{k{i}: 1, <<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, levels)]
    return "\n".join(lines) + "\n" + DATABASE


def bomb(levels: int) -> str:
    """Lists that name each other nine times."""
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n" + DATABASE


HOSTILE: dict[str, bytes] = {
    "merge chain": chain(30).encode(),
    "aliases": bomb(30).encode(),
    "alias of itself": b"dbs: &a [*a]\n",
    "mapping of itself": b"dbs: &a {dbs: *a, path: *a}\n",
    "merge of itself": b"dbs: &a\n  <<: *a\n",
    "number of 5,000 digits": b"dbs: []\nl0-retention: " + b"9" * 5000 + b"\n",
    "key of 5,000 digits": b"9" * 5000 + b": 1\n" + DATABASE.encode(),
    "hexadecimal number": b"l0-retention: 0x" + b"f" * 5000 + b"\n" + DATABASE.encode(),
    "octal number": b"l0-retention: 0" + b"7" * 5000 + b"\n" + DATABASE.encode(),
    "sexagesimal number": b"l0-retention: 1" + b":59" * 3000 + b"\n" + DATABASE.encode(),
    "float": b"l0-retention: 1e999999\n" + DATABASE.encode(),
    "not a number": b"l0-retention: .nan\n" + DATABASE.encode(),
    "lone surrogate": b'dbs: [{path: "\\ud800", replica: {path: /r}}]\n',
    "surrogate in a key": b'"\\udfff": 1\n' + DATABASE.encode(),
    "NUL": b'dbs: [{path: "a\\0b", replica: {path: /r}}]\n',
    "raw NUL": b"dbs: [{path: a\x00b}]\n",
    "escape": b'dbs: [{path: "\\e[2J", replica: {path: "\\u202e"}}]\nx\\e: 1\n',
    "unknown key with escapes": b'"\\e[2J": 1\n' + DATABASE.encode(),
    "nested lists": b"[" * 20_000,
    "nested mappings": b"{a: " * 20_000,
    "nested lines": b"".join(b" " * i + b"a:\n" for i in range(2000)),
    "tag of Python": b"dbs: !!python/object/apply:os.system ['touch written']\n",
    "binary": b"dbs: !!binary 'AAAA'\n",
    "time": b"l0-retention: 2026-01-01T00:00:00Z\n" + DATABASE.encode(),
    "impossible time": b"l0-retention: 2026-99-99\n" + DATABASE.encode(),
    "set": b"dbs: !!set {a, b}\n",
    "not UTF-8": b"dbs: \xff\xfe\n",
    "UTF-16": ("\ufeff" + DATABASE).encode("utf-16"),
    "two documents": b"---\na: 1\n---\nb: 2\n",
    "duplicate keys": DATABASE.encode() * 2,
    "number as database": b"dbs: 5\n",
    "list": b"- a\n",
    "empty": b"",
    "long line": b"dbs: " + b"x" * (1 << 20),
    "directory beyond all": b"dbs: [{dir: /, pattern: '" + b"[" * 5000 + b"', replica: {path: /r}}]\n",
    "long path": b"dbs: [{path: /" + b"a" * 5000 + b", replica: {path: /r}}]\n",
    "port": b"dbs: [{path: /a, replica: {url: 's3://b/x?endpoint=http://h:" + b"9" * 5000 + b"'}}]\n",
}


def status_of(path: Path, **options: str) -> Ended:
    return limited("status", "--config", path, deadline_s=20, environment={**os.environ, **options})


@pytest.mark.slow  # a process for each
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_configuration_is_one_clear_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "litereplica.yml"
    path.write_bytes(HOSTILE[name])
    ended = status_of(path)
    require_orderly(ended, ExitCode.USAGE, ExitCode.OK)
    if ended.code == ExitCode.USAGE:
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert len(ended.stderr) < 2000
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_secret_of_a_broken_line_is_not_printed(tmp_path: Path, debug: list[str]) -> None:
    path = tmp_path / "litereplica.yml"
    for broken in (
        f"secret-access-key: '{SECRET}\ndbs: []\n",
        f"secret-access-key: {SECRET}: x: [\n",
        f"dbs: [{{path: /a, replica: {{url: 's3://b', secret-access-key: [{SECRET}]}}}}]\n",
        f"secret-access-key: {SECRET}\n\taccess-key-id: x\n",
    ):
        path.write_text(broken)
        ended = limited(*debug, "status", "--config", path)
        assert ended.code == ExitCode.USAGE
        assert SECRET not in ended.stdout + ended.stderr


def test_pipe_as_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "litereplica.yml"
    os.mkfifo(path)
    ended = status_of(path)
    require_orderly(ended, ExitCode.USAGE)
    assert "is not a regular file" in ended.stderr


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/proc/self/mem"])
def test_device_as_configuration_is_refused(device: str) -> None:
    require_orderly(status_of(Path(device)), ExitCode.USAGE)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["x: [", "'\n  - path: /etc/passwd", "a\nsocket: {path: /tmp/x}", "${HOME}", "&a *a"])
def test_variable_adds_no_keys_and_breaks_no_quoting(tmp_path: Path, value: str) -> None:
    path = tmp_path / "litereplica.yml"
    path.write_text("dbs:\n  - path: ${PLACE}\n    replica: {path: /srv/replica}\n")
    ended = limited(
        "status", "--config", path, "--json", environment={**os.environ, "PLACE": f"/srv/{value}"}, deadline_s=20
    )
    require_orderly(ended)
    require_printed(["status", "--json"], ended.stdout)
    (database,) = json.loads(ended.stdout)["databases"]
    assert database["db_path"] == f"/srv/{value}"


def test_key_that_comes_from_a_variable_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "litereplica.yml"
    path.write_text("$KEY: x\n" + DATABASE)
    ended = status_of(path, KEY="socket")
    require_orderly(ended, ExitCode.USAGE)
    assert "a key has a variable" in ended.stderr
