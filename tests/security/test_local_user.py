"""Another user of this machine: what they own, plant or claim has no authority over our processes and files."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from litereplica.cli.logging_setup import LogFileHandler
from litereplica.errors import ExitCode
from litereplica.format import ltx
from litereplica.ltxstore.spooled_file import SpooledFile
from litereplica.restore.output_file import OutputFile
from litereplica.testing.ltx_files import encode_file
from litereplica.testing.mounts import litereplica_binary
from litereplica.writer.database.published import Version
from litereplica.writer.database.state_directory import StateDirectory
from litereplica.writer.publish.page_checksums import PageChanges, PageChecksums
from tests.format.builders import make_header, make_page
from tests.security import fake_mount
from tests.security.limited import Ended, limited, require_orderly

ALICE = 65_534
"""Another user's id."""

DEADLINE_S = 30.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")


@pytest.fixture
def alices(tmp_path: Path) -> Path:
    """A directory of the other user, which both can reach."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    directory = tmp_path / "alice"
    directory.mkdir(mode=0o755)
    os.chown(directory, ALICE, ALICE)
    return directory


# --- the status of a mount of another user ---------------------------------------------------------------------------

SCENE = textwrap.dedent(
    """
    set -e
    awk '/fuse.litereplica/ {{ print $5 }}' /proc/self/mountinfo | while read copy; do umount -l "$copy"; done
    mount --bind "$CONF" /etc/fuse.conf
    mknod "$DEVICE" c 10 229
    chmod 666 "$DEVICE"
    mount --bind "$DEVICE" /dev/fuse
    alice="setpriv --reuid={alice} --regid={alice} --clear-groups --pdeathsig KILL"
    $alice "$PYTHON" "$FAKE" "$MNT" "$STATUS" > "$OUT" &
    fake=$!
    until grep -q ready "$OUT"; do kill -0 $fake; sleep 0.1; done
    set +e
    "$LITEREPLICA" $COMMAND "$MNT"
    code=$?
    umount -l "$MNT" 2>/dev/null
    kill -9 $fake 2>/dev/null
    exit $code
    """
).format(alice=ALICE)


@contextmanager
def bystander(uid: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """A process that SIGUSR1 would end."""
    command = ["setpriv", f"--reuid={uid}", "--clear-groups", "sleep", "60"]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


def beside_a_fake_mount(tmp_path: Path, alices: Path, command: str, status: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a mount of the other user, in a mount namespace of its own."""
    conf = tmp_path / "fuse.conf"
    conf.write_text("user_allow_other\n")
    conf.chmod(0o644)
    (alices / "mnt").mkdir()
    os.chown(alices / "mnt", ALICE, ALICE)
    fake = tmp_path / "fake_mount.py"
    fake.write_bytes(Path(fake_mount.__file__).read_bytes())
    fake.chmod(0o644)
    environment = os.environ | {
        "CONF": str(conf),
        "DEVICE": str(tmp_path / "fuse"),
        "PYTHON": sys.executable,
        "FAKE": str(fake),
        "MNT": str(alices / "mnt"),
        "STATUS": status,
        "OUT": str(tmp_path / "out"),
        "LITEREPLICA": litereplica_binary(),
        "COMMAND": command,
    }
    (tmp_path / "out").touch()
    return subprocess.run(
        ["unshare", "-m", "--propagation", "slave", "sh", "-c", SCENE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_umount_sends_no_signal_to_a_process_that_another_users_mount_names(tmp_path: Path, alices: Path) -> None:
    with bystander() as victim:
        done = beside_a_fake_mount(tmp_path, alices, "umount", json.dumps({"pid": victim.pid}))
        assert victim.poll() is None, "it was ended"
    assert "Traceback" not in done.stderr
    assert done.returncode == ExitCode.OK, done.stderr


def test_umount_sends_no_signal_to_another_process_of_the_mounts_user(tmp_path: Path, alices: Path) -> None:
    with bystander(ALICE) as victim:
        done = beside_a_fake_mount(tmp_path, alices, "umount", json.dumps({"pid": victim.pid}))
        assert victim.poll() is None, "it was ended"
    assert done.returncode == ExitCode.OK, done.stderr


STATUSES = {
    "pid 1": '{"pid": 1}',
    "pid -1": '{"pid": -1}',
    "pid 0": '{"pid": 0}',
    "pid true": '{"pid": true}',
    "huge pid": '{"pid": ' + "9" * 4000 + "}",
    "text": '{"pid": "1"}',
    "no pid": "{}",
    "list": "[]",
    "nested": "[" * 100_000,
    "not JSON": "hello",
    "other types": '{"pid": 5, "replica": 7, "polling": []}',
    "escapes": '{"pid": 5, "url": "\\u001b[2J\\u202e", "mountpoint": "\\u009b31m"}',
}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("command", ["umount", "status"])
@pytest.mark.slow
def test_status_that_another_user_wrote_does_no_harm(tmp_path: Path, alices: Path, command: str, status: str) -> None:
    done = beside_a_fake_mount(tmp_path, alices, command, STATUSES[status])
    assert "Traceback" not in done.stderr
    assert "bug in litereplica" not in done.stderr
    assert done.returncode in (ExitCode.OK, ExitCode.ENVIRONMENT), done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "\u202e" not in done.stdout + done.stderr
    assert "\x9b" not in done.stdout + done.stderr


def test_real_mount_of_another_user_is_ended_by_root(tmp_path: Path, alices: Path) -> None:
    """Control: what is checked does not keep root from ending a genuine daemon of another user."""
    from litereplica.cli.mount_status import daemon_of
    from litereplica.fuse.mountpoint import Mount

    options = f"rw,user_id={os.getuid()},group_id={os.getgid()}"
    mount = Mount(1, 1, "0:1", "/mnt", "fuse.litereplica", "x", options, frozenset(), frozenset())
    fd = os.open("/dev/fuse", os.O_RDWR)
    try:
        with daemon_of(mount, os.getpid()) or pytest.fail("not recognised") as daemon:
            before = signal.signal(signal.SIGUSR1, lambda *_: None)
            daemon.ask_to_end()
            signal.signal(signal.SIGUSR1, before)
            assert daemon.runs
    finally:
        os.close(fd)
    assert daemon_of(mount, os.getpid()) is None, "serves no file system any more"


# --- the directory of control sockets --------------------------------------------------------------------------------


def test_status_asks_no_socket_in_a_directory_that_another_user_made(tmp_path: Path, alices: Path) -> None:
    planted = alices / "litereplica"
    planted.mkdir()
    os.chown(planted, ALICE, ALICE)
    bob = 65_533
    environment = os.environ | {"XDG_RUNTIME_DIR": str(alices)}
    ended = limited("status", as_user=bob, environment=environment)
    require_orderly(ended, ExitCode.ENVIRONMENT)
    assert "is not a private directory of this user" in ended.stderr


# --- directories of others -------------------------------------------------------------------------------------------

VICTIM = b"of root\n"
REFUSED_CODES = (ExitCode.ENVIRONMENT, ExitCode.USAGE)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of root that must stay as it is."""
    path = tmp_path / "victim"
    path.write_bytes(VICTIM)
    path.chmod(0o600)
    return path


def database_of(directory: Path, name: str = "app.db", *, owner: int = ALICE) -> Path:
    """A database of a user, with a table `t` of one row."""
    path = directory / name
    with closing(sqlite3.connect(path, isolation_level=None)) as client:
        client.execute("PRAGMA journal_mode=wal")
        client.execute("CREATE TABLE t(x)")
        client.execute("INSERT INTO t VALUES (1)")
    for made in directory.glob(f"{name}*"):
        os.chown(made, owner, owner)
    return path


def replicate_once(database: Path, replica: Path) -> Ended:
    return limited("replicate", database, f"file://{replica}", "--once")


def give(path: Path, owner: int = ALICE) -> None:
    os.chown(path, owner, owner, follow_symlinks=False)


def test_control_root_replicates_the_database_of_another_user(tmp_path: Path, alices: Path) -> None:
    require_orderly(replicate_once(database_of(alices), tmp_path / "replica"))
    require_orderly(replicate_once(alices / "app.db", tmp_path / "replica"))


def test_state_directory_is_not_followed_through_a_link(tmp_path: Path, alices: Path) -> None:
    database = database_of(alices)
    roots = tmp_path / "roots"
    roots.mkdir()
    (roots / "checkpoint.json").write_bytes(VICTIM)
    state = alices / ".app.db-litereplica"
    state.symlink_to(roots)
    give(state)
    ended = replicate_once(database, tmp_path / "replica")
    require_orderly(ended, ExitCode.ENVIRONMENT)
    assert (roots / "checkpoint.json").read_bytes() == VICTIM
    assert [path.name for path in roots.iterdir()] == ["checkpoint.json"]


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_state_directory_that_others_may_write_to_is_refused(tmp_path: Path, alices: Path, mode: int) -> None:
    database = database_of(alices)
    state = alices / ".app.db-litereplica"
    state.mkdir()
    state.chmod(mode)
    ended = replicate_once(database, tmp_path / "replica")
    require_orderly(ended, ExitCode.ENVIRONMENT)
    assert f"chmod 700 {state}" in ended.stderr


def test_state_directory_of_a_third_user_is_refused(tmp_path: Path, alices: Path) -> None:
    database = database_of(alices)
    state = alices / ".app.db-litereplica"
    state.mkdir(mode=0o700)
    give(state, 65_532)
    require_orderly(replicate_once(database, tmp_path / "replica"), ExitCode.ENVIRONMENT)


STATE_FILES = ["lock", "checkpoint.json", "pages.sums", "writer.json", "lineage.json", "checked.json"]


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "directory", "garbage"])
@pytest.mark.parametrize("name", STATE_FILES)
@pytest.mark.slow
def test_file_of_the_state_directory_that_another_user_planted_is_neither_followed_nor_waited_for(
    tmp_path: Path, alices: Path, victim: Path, name: str, kind: str
) -> None:
    database = database_of(alices)
    state = alices / ".app.db-litereplica"
    state.mkdir(mode=0o700)
    planted = state / name
    match kind:
        case "link":
            planted.symlink_to(victim)
        case "hard link":
            planted.hardlink_to(victim)
        case "pipe":
            os.mkfifo(planted)
        case "directory":
            planted.mkdir()
        case _:
            planted.write_bytes(b"LRsums1\n" + b"\xff" * 300)
    give(state)
    ended = replicate_once(database, tmp_path / "replica")
    require_orderly(ended, ExitCode.OK, ExitCode.ENVIRONMENT)
    assert victim.read_bytes() == VICTIM


def test_spooled_file_has_no_name_that_another_user_could_take(alices: Path) -> None:
    """The directory may be another user's, who would have a file of root published, or written to."""
    for directory in (alices, None):
        spool = SpooledFile(directory, memory_bytes=0)
        made = encode_file(make_header(commit=2), [(1, bytes(512)), (2, make_page(2))])
        spool.write([made[: ltx.HEADER_SIZE], made[ltx.HEADER_SIZE :]])
        spool.finish()
        assert list(alices.iterdir()) == []
        assert isinstance(spool.body, Path)
        assert spool.body.read_bytes() == made
        assert spool.body.stat().st_mode & 0o077 == 0
        assert spool.body.stat().st_size == spool.size == len(made)
        spool.discard()


def test_state_directory_that_is_exchanged_while_it_is_locked_is_not_written_to(tmp_path: Path, alices: Path) -> None:
    database = database_of(alices)
    roots = tmp_path / "roots"
    roots.mkdir()
    with StateDirectory(database) as state:
        checksums = PageChecksums(state.page_checksums, directory=state.descriptor)
        state.path.rename(alices / "away")
        state.path.symlink_to(roots)
        changes = PageChanges(1, np.array([1], np.uint32), np.array([7], np.uint64))
        checksums.replace(Version(1, 1), changes)
        assert checksums.at(np.array([1], np.uint32)).tolist() == [7]
        assert (alices / "away" / "pages.sums").exists()
    assert list(roots.iterdir()) == []


def restored_as_root(replica: Path, *arguments: str | Path) -> Ended:
    return limited("restore", *arguments, f"file://{replica}")


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    database = database_of(tmp_path / "source", owner=0)
    require_orderly(replicate_once(database, tmp_path / "replica"))
    return tmp_path / "replica"


def test_restore_does_not_replace_what_a_link_of_another_user_names(alices: Path, replica: Path, victim: Path) -> None:
    output = alices / "restored.db"
    output.symlink_to(victim)
    give(output)
    require_orderly(restored_as_root(replica, "--force", "-o", output), *REFUSED_CODES)
    assert victim.read_bytes() == VICTIM


def test_restore_does_not_create_what_a_dangling_link_names(tmp_path: Path, alices: Path, replica: Path) -> None:
    output = alices / "restored.db"
    output.symlink_to(tmp_path / "created")
    give(output)
    for options in ([], ["--force"]):
        require_orderly(restored_as_root(replica, *options, "-o", output), *REFUSED_CODES)
    assert not (tmp_path / "created").exists()


def test_following_restore_does_not_write_through_a_link_in_place_of_its_txid_file(
    alices: Path, replica: Path, victim: Path
) -> None:
    output = alices / "restored.db"
    (alices / "restored.db-txid").symlink_to(victim)
    give(alices / "restored.db-txid")
    ended = restored_as_root(replica, "-f", "-o", output)
    require_orderly(ended, *REFUSED_CODES)
    assert victim.read_bytes() == VICTIM
    assert not output.exists()


def test_restore_of_all_writes_through_no_link_below_its_directory(tmp_path: Path, alices: Path) -> None:
    source = tmp_path / "source" / "sub"
    source.mkdir(parents=True)
    require_orderly(replicate_once(database_of(source, owner=0), tmp_path / "replica" / "sub" / "app.db"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (alices / "sub").symlink_to(elsewhere)
    give(alices / "sub")
    ended = restored_as_root(tmp_path / "replica", "--all", "-o", alices)
    require_orderly(ended, *REFUSED_CODES)
    assert "is a symbolic link" in ended.stderr
    assert list(elsewhere.iterdir()) == []


def test_directory_does_not_publish_what_another_users_link_leads_to(tmp_path: Path, alices: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    database_of(private, "secret.db", owner=0)
    database_of(alices, "own.db")
    (alices / "linked.db").symlink_to(private / "secret.db")
    give(alices / "linked.db")
    config = tmp_path / "litereplica.yml"
    replica = {"url": f"file://{tmp_path}/replica"}
    config.write_text(json.dumps({"dbs": [{"dir": str(alices), "pattern": "*.db", "replica": replica}]}))
    ended = limited("replicate", "--config", config, "--once")
    require_orderly(ended)
    published = {path.name for path in (tmp_path / "replica").iterdir()}
    assert "own.db" in published
    assert "linked.db" not in published
    assert "it is not replicated" in ended.stderr


# --- logs ------------------------------------------------------------------------------------------------------------


def test_mount_neither_opens_nor_reopens_its_log_where_another_user_planted_a_link(
    tmp_path: Path, alices: Path, replica: Path, victim: Path
) -> None:
    cache = alices / "cache"
    (tmp_path / "mnt").mkdir()
    command: list[str | Path] = ["mount", f"file://{replica}", tmp_path / "mnt", "--cache-dir", cache]
    try:
        require_orderly(limited(*command))
        (log,) = cache.rglob("mount.log")
        os.chown(log.parent, ALICE, ALICE)
        log.unlink()
        log.symlink_to(victim)
        give(log)
        require_orderly(limited("umount", tmp_path / "mnt"))  # the daemon logs its end, and umount waits for it
        assert victim.read_bytes() == VICTIM, "written by the daemon that was running"
        require_orderly(limited(*command), ExitCode.ENVIRONMENT)
    finally:
        limited("umount", "--lazy", tmp_path / "mnt")
    assert victim.read_bytes() == VICTIM, "written by a daemon that started"


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "pipe", "file", "directory", "link of a link"])
def test_log_is_not_continued_in_what_another_user_put_in_its_place(
    tmp_path: Path, alices: Path, victim: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = alices / "daemon.log"
    handler = LogFileHandler(path)
    record = logging.LogRecord("litereplica", logging.INFO, "", 0, "secret line", None, None)
    handler.emit(record)
    away = path.rename(alices / "rotated")
    match kind:
        case "link":
            path.symlink_to(victim)
        case "dangling link":
            path.symlink_to(tmp_path / "created")
        case "hard link":
            path.hardlink_to(victim)
        case "pipe":
            os.mkfifo(path)
        case "file":
            path.touch(mode=0o644)
        case "directory":
            path.mkdir()
        case _:
            path.symlink_to(alices / "further")
            (alices / "further").symlink_to(victim)
            give(alices / "further")
    if kind != "hard link":
        give(path)
    handler.emit(record)
    assert victim.read_bytes() == VICTIM
    assert not (tmp_path / "created").exists()
    assert kind != "file" or path.read_bytes() == b""
    assert "secret line" in capsys.readouterr().err, "the line has gone to stderr instead"
    with pytest.raises(OSError, match=r"another user|regular|another name|directory|device"):
        LogFileHandler(path)
    path.rmdir() if kind == "directory" else path.unlink()
    handler.emit(record)
    handler.close()
    assert path.read_text() == away.read_text() == "secret line\n"


def test_log_is_continued_behind_a_link_of_this_user_and_rotated_there(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "daemon.log").symlink_to("logs/one")
    handler = LogFileHandler(tmp_path / "daemon.log")
    record = logging.LogRecord("litereplica", logging.INFO, "", 0, "line", None, None)
    handler.emit(record)
    (tmp_path / "logs" / "one").rename(tmp_path / "logs" / "two")
    handler.emit(record)
    handler.close()
    assert (tmp_path / "logs" / "one").read_text() == (tmp_path / "logs" / "two").read_text() == "line\n"


@pytest.mark.parametrize("sidecar", ["-wal", "-journal"])
def test_restored_file_stays_in_the_directory_that_was_checked(tmp_path: Path, sidecar: str) -> None:
    """Whoever owns a directory above it exchanges it for a link while the restore is under way."""
    given, moved, victims = tmp_path / "given", tmp_path / "moved", tmp_path / "victims"
    for directory in (given, victims):
        directory.mkdir()
        for name in ("app.db", f"app.db{sidecar}"):
            (directory / name).write_bytes(VICTIM)
    output = OutputFile(given / "app.db", force=True)
    os.write(output.open(), b"restored")
    given.rename(moved)
    given.symlink_to(victims)
    output.publish()
    assert sorted((path.name, path.read_bytes()) for path in victims.iterdir()) == [
        ("app.db", VICTIM),
        (f"app.db{sidecar}", VICTIM),
    ]
    assert [(path.name, path.read_bytes()) for path in moved.iterdir()] == [("app.db", b"restored")]
