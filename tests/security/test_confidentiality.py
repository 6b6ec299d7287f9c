"""Who may read what is made here: files no more than their source, credentials only those who need them."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from litereplica.cli.main import cli
from litereplica.errors import ExitCode, UsageError
from litereplica.file_access import parse_mode
from litereplica.storage.credentials import Credentials, without_credentials
from litereplica.testing.mounts import litereplica_binary
from tests.security.limited import limited, require_orderly
from tests.security.test_local_user import ALICE, alices, database_of

__all__ = ["alices"]

two_users = pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")

SECRETS = {
    "AWS_ACCESS_KEY_ID": "secret-1",
    "AWS_SECRET_ACCESS_KEY": "secret-2",
    "AWS_SESSION_TOKEN": "secret-3",
    "AWS_PROFILE": "secret-4",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/secret-5",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN": "secret-6",
    "LITESTREAM_SECRET_ACCESS_KEY": "secret-7",
}
CURIOUS = """
env > "$1"
for name in environ maps mem; do
    head -c 0 "/proc/$PPID/$name" 2>/dev/null && echo "SEES_PARENT_$name=1" >> "$1"
done
exit 0
"""
"""A program that writes down what it sees of its own environment, and of the process that started it."""


@two_users
@pytest.mark.slow
@pytest.mark.parametrize("withheld", ["by option", "by key", "no"])
def test_program_of_exec_sees_no_credentials_if_they_are_withheld(alices: Path, withheld: str) -> None:
    database = database_of(alices)
    program, seen = alices / "curious.sh", alices / "seen"
    program.write_text(CURIOUS)
    config = alices / "litereplica.yml"
    key = {"exec-without-credentials": True} if withheld == "by key" else {}
    command = f"/bin/sh {program} {seen}"
    config.write_text(
        json.dumps({"dbs": [{"path": str(database), "replica": {"path": f"{alices}/replica"}}], "exec": command} | key)
    )
    option = ["--exec-without-credentials"] if withheld == "by option" else []
    environment = {"PATH": os.environ["PATH"], "AWS_REGION": "here", "OTHER": "x", **SECRETS}
    ended = limited("replicate", "-c", config, *option, as_user=ALICE, environment=environment)
    require_orderly(ended)
    found = dict(line.split("=", 1) for line in seen.read_text().splitlines())
    assert (found["OTHER"], found["AWS_REGION"]) == ("x", "here")
    sees_parent = [name for name in found if name.startswith("SEES_PARENT")]
    if withheld == "no":  # control: it can see what is looked for
        assert SECRETS.items() <= found.items()
        assert "SEES_PARENT_environ" in sees_parent
        return
    assert not [value for value in found.values() if "secret" in value]
    assert not sees_parent


def test_variables_of_any_name_that_hold_a_credential_in_use_are_withheld() -> None:
    pairs = [Credentials("key-1", "secret-1"), Credentials("key-2", "secret-2", "token-2")]
    held = {"TENANT_KEY": "key-1", "TENANT_SECRET": "secret-1\n", "B": "secret-2", "TOKEN": "token-2"}
    others = {"EMPTY": "", "PATH": "/bin", "AWS_REGION": "here", "MENTIONS": "secret-12"}
    assert without_credentials({**others, **SECRETS, **held}, pairs) == others


# --- what is made is no more accessible than what it is made from ----------------------------------------------------

TEAM, OTHERS = 54_321, 54_322
"""Groups; their numbers need no names."""


def accessible(root: Path, *, mode: int, gid: int) -> list[str]:
    """What below a directory gives somebody a right that neither a file of this mode and group nor its owner gives."""
    found = []
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        allowed = mode | (mode & 0o444) >> 2 if path.is_dir() else mode
        if status.st_gid != gid:
            allowed &= ~0o070
        excess = stat.S_IMODE(status.st_mode) & ~allowed & 0o077
        if excess and not stat.S_ISLNK(status.st_mode):
            found.append(f"{path.relative_to(root)} {stat.S_IMODE(status.st_mode):o} group {status.st_gid}")
    return found


def follow(replica: Path, output: Path, *options: str) -> None:
    """Let `restore -f` make a database and follow it for a moment."""
    command = [litereplica_binary(), "restore", "-f", f"file://{replica}", "-o", str(output), *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not output.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == ExitCode.OK
    finally:
        process.kill()
        process.wait()


@two_users
@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_nothing_that_is_made_is_more_accessible_than_its_source(tmp_path: Path, mode: int) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    for directory in (source, made, tmp_path / "mnt"):
        directory.mkdir(mode=0o755)
    database = database_of(source)
    for each in source.iterdir():
        os.chown(each, ALICE, TEAM)
        each.chmod(mode)
    os.chown(source, ALICE, TEAM)
    url = f"file://{made}/replica"
    require_orderly(limited("replicate", database, url, "--once", "--log-file", made / "log"))
    require_orderly(limited("snapshot", url))
    source.chmod(mode | 0o100 | (mode & 0o040) >> 2)
    config = tmp_path / "litereplica.yml"
    config.write_text(json.dumps({"dbs": [{"dir": str(source), "replica": {"path": f"{made}/all"}}]}))
    require_orderly(limited("replicate", "--config", config, "--once"))
    require_orderly(limited("restore", url, "-o", made / "new" / "restored.db"))
    require_orderly(limited("restore", f"file://{made}/all", "--all", "-o", made / "tenants"))
    follow(made / "replica", made / "followed" / "app.db")
    mount: list[str | Path] = ["mount", url, tmp_path / "mnt", "--name", "app.db", "--cache-dir", made / "cache"]
    try:
        require_orderly(limited(*mount))
        (tmp_path / "mnt" / "app.db").read_bytes()
    finally:
        require_orderly(limited("umount", tmp_path / "mnt"))
    names = {path.name for path in made.rglob("*")}
    assert {"log", "restored.db", "app.db-txid", "mount.log", ".litereplica-lock", "tenants"} <= names
    assert accessible(made, mode=mode, gid=TEAM) == []
    assert accessible(source, mode=mode, gid=TEAM) == []
    if mode == 0o640:  # a limit, not more: the group of the database may read the replica
        (level0,) = (made / "replica").glob("ltx/0/*.ltx")
        assert (stat.S_IMODE(level0.stat().st_mode), level0.stat().st_gid) == (0o640, TEAM)


@two_users
@pytest.mark.slow
def test_mode_and_group_widen_what_is_made_whatever_the_umask(tmp_path: Path) -> None:
    database = database_of(tmp_path)
    database.chmod(0o600)
    replica = tmp_path / "a" / "replica"
    before = os.umask(0o077)
    try:
        wanted = ["--mode", "0640", "--group", str(OTHERS)]
        require_orderly(limited("replicate", database, f"file://{replica}", "--once", *wanted))
        require_orderly(limited("restore", f"file://{replica}", "-o", tmp_path / "b" / "new.db", *wanted))
        follow(replica, tmp_path / "b" / "followed.db", *wanted)
        replaced = tmp_path / "replaced.db"
        replaced.touch(0o600)
        require_orderly(limited("restore", f"file://{replica}", "-o", replaced, "--force", "--group", str(OTHERS)))
    finally:
        os.umask(before)
    objects = [path for path in (tmp_path / "a").rglob("*") if path.name != ".litereplica-lock"]
    for path in [*objects, tmp_path / "a", *(tmp_path / "b").glob("*.db"), tmp_path / "b", replaced]:
        expected = 0o750 if path.is_dir() else 0o640
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (expected, OTHERS), path


@two_users
@pytest.mark.slow
def test_group_bits_go_to_nobody_if_the_group_cannot_be_kept(alices: Path) -> None:
    """A user who is not in the database's group cannot give it to an object; the user's own group gets nothing."""
    database = database_of(alices)
    for each in alices.iterdir():
        os.chown(each, ALICE, TEAM)
        each.chmod(0o660)
    replica = alices / "replica"
    require_orderly(limited("replicate", database, f"file://{replica}", "--once", as_user=ALICE))
    assert accessible(replica, mode=0o600, gid=-1) == []
    wanted = limited("replicate", database, f"file://{replica}", "--once", "--group", str(TEAM), as_user=ALICE)
    require_orderly(wanted, ExitCode.USAGE)
    assert f"this user is not in the group {TEAM}: name a group of this user" in wanted.stderr


def test_modes_are_octal_and_let_nobody_execute() -> None:
    assert [parse_mode(text) for text in ("0640", "600", "666")] == [0o640, 0o600, 0o666]
    for text in ("0640x", "0200", "1640", "0750", "rw", "", "9" * 5000, "٦٤٠"):
        assert parse_mode(text) is None
    result = CliRunner().invoke(cli, ["restore", "file:///x", "-o", "x.db", "--mode", "0750"], standalone_mode=False)
    assert isinstance(result.exception, UsageError)
