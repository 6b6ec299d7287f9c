"""A mount's life: how it begins, how it ends, and what becomes of the clients inside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import pytest

from litereplica.errors import ExitCode
from litereplica.fuse import mountpoint as mountpoints
from litereplica.fuse.names import STATUS_NAME
from litereplica.testing.mounts import MountedReplica, litereplica_binary, wait_for_end
from tests.conftest import S3Bucket
from tests.helpers.namespaces import in_a_namespace
from tests.helpers.publisher import Publisher

pytestmark = pytest.mark.slow

DEADLINE_S = 15.0
STOP_DEADLINE_S = 5.0
"""What a daemon has to end after SIGTERM."""

SETUP = "CREATE TABLE t (id INTEGER PRIMARY KEY, value TEXT); INSERT INTO t VALUES (0, 'zero');"

BIG = """
CREATE TABLE big (value BLOB);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
INSERT INTO big SELECT randomblob(3000) FROM n;
"""
"""Pages that a mount does not fetch before they are read."""

CLIENT = """
import itertools, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
for _ in itertools.chain([""], sys.stdin):
    try:
        print(connection.execute("SELECT count(*), max(id) FROM t").fetchone(), flush=True)
    except sqlite3.Error as exc:
        print(exc, flush=True)
"""
"""Holds a read transaction open; prints what it sees, at first and for each line."""


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    with Publisher(tmp_path / "primary", setup=SETUP) as publisher:
        yield publisher


class Client:
    """A process inside a mount that holds a read transaction."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", CLIENT, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.first = self._answer()

    def ask(self) -> str:
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], DEADLINE_S)
        assert ready, "the client does not answer"
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def litereplica(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [litereplica_binary(), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def wait_until(condition: Callable[[], object], *, within_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "condition not reached in time"
        time.sleep(0.005)


def rows(path: Path) -> list[tuple[int, str]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT id, value FROM t ORDER BY id").fetchall()


def refused(mount: MountedReplica, times: int) -> bool:
    return mount.log.count("not unmounted") >= times


def is_mounted(path: Path) -> bool:
    return mountpoints.mount_at(mountpoints.absolute(path)) is not None


def insert(publisher: Publisher, number: int) -> int:
    return publisher.transaction(f"INSERT INTO t VALUES ({number}, 'value {number}')")


# --- the beginning ---------------------------------------------------------------------------------


def test_mount_returns_when_the_replica_answers_queries(publisher: Publisher, tmp_path: Path) -> None:
    for number in range(1, 4):
        insert(publisher, number)
    with MountedReplica(publisher.url, tmp_path) as mount:
        assert len(rows(mount.path)) == 4
        assert mount.pos().txid == publisher.txid


def test_the_daemon_has_a_session_of_its_own_and_no_terminal(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount:
        process = Path(f"/proc/{mount.pid}")
        session = int((process / "stat").read_text().rpartition(")")[2].split()[3])
        assert session == mount.pid
        assert (process / "cwd").readlink() == Path("/")
        assert {(process / "fd" / fd).readlink() for fd in "012"} == {Path("/dev/null")}


def test_the_command_prints_the_path_of_the_database(publisher: Publisher, tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    done = litereplica("mount", publisher.url, path, "--name", "x.db", "--cache-dir", tmp_path / "cache")
    try:
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}/x.db\n", "")
    finally:
        assert litereplica("umount", path).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_it_stays_until_a_signal_ends_it(
    number: signal.Signals, publisher: Publisher, tmp_path: Path
) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    command = [litereplica_binary(), "mount", "-f", publisher.url, str(path), "--name", "app.db"]
    process = subprocess.Popen(
        [*command, "--cache-dir", str(tmp_path / "cache")], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: is_mounted(path))
        wait_until(lambda: process.poll() is not None or (path / "app.db-pos").exists())
        wait_until(lambda: rows(path / "app.db"))
        process.send_signal(number)
        _, errors = process.communicate(timeout=STOP_DEADLINE_S)
    finally:
        process.kill()
        process.wait()
        if is_mounted(path):
            mountpoints.unmount(path, lazy=True)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert not is_mounted(path)


def test_mount_waits_for_a_replica_that_is_not_there_yet(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/primary/replica"
    command = [litereplica_binary(), "mount", url, str(tmp_path / "mnt"), "--wait", "1m", "--log-file"]
    (tmp_path / "mnt").mkdir()
    log = tmp_path / "log"
    with subprocess.Popen([*command, log, "--cache-dir", tmp_path / "cache", "--name", "app.db"]) as mounting:
        wait_until(lambda: log.exists() and "retrying" in log.read_text())
        with Publisher(tmp_path / "primary", setup=SETUP):
            assert mounting.wait(DEADLINE_S) == 0
            assert rows(tmp_path / "mnt/app.db") == [(0, "zero")]
            assert litereplica("umount", tmp_path / "mnt").returncode == 0
    assert log.read_text().count("retrying") <= 2, "each reason is logged once"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_without_wait_mount_fails_at_once_and_a_signal_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "empty").mkdir()
    arguments = ["mount", f"file://{tmp_path}/empty", str(tmp_path / "mnt"), "--cache-dir", str(tmp_path / "cache")]
    assert litereplica(*arguments).returncode == ExitCode.NOT_FOUND
    log = tmp_path / "log"
    command = [litereplica_binary(), *arguments, "--wait", "1m", "--log-file", str(log)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as mounting:
        wait_until(lambda: log.exists() and "retrying" in log.read_text())
        daemon = int(Path(f"/proc/{mounting.pid}/task/{mounting.pid}/children").read_text())
        mounting.send_signal(number)
        assert mounting.wait(DEADLINE_S) != 0
        wait_for_end(daemon)
    assert not is_mounted(tmp_path / "mnt")


def test_signals_at_any_moment_of_mounting_leave_nothing_behind(publisher: Publisher, tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    command = [litereplica_binary(), "mount", publisher.url, str(path), "--cache-dir", str(tmp_path / "cache")]
    takes_s = 0.0

    def interrupted(number: signal.Signals, *options: str, after: float | None) -> bool:
        """Send a signal at a part of the time that mounting takes, or when it is mounted; True if that was too late."""
        nonlocal takes_s
        started = time.monotonic()
        with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as mounting:
            if after is None:
                wait_until(lambda: is_mounted(path) or mounting.poll() is not None)
                takes_s = time.monotonic() - started
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    mounting.wait(takes_s * after)
            mounting.send_signal(number)
            _, errors = mounting.communicate(timeout=DEADLINE_S)
        return require_nothing_mounted(path, mounting, errors, may_be_mounted=not options)

    assert not interrupted(signal.SIGTERM, "-f", after=None)
    late = [interrupted(signal.SIGINT, after=after) for after in (0.6, 0.85, 1.0, None)]
    interrupted(signal.SIGINT, "-f", after=0.95)
    assert not all(late)


def require_nothing_mounted(
    path: Path, mounting: subprocess.Popen[bytes], errors: bytes, *, may_be_mounted: bool
) -> bool:
    """Fail if a mount that was interrupted left something; True if it was ready before, and is taken away here."""
    assert b"Traceback" not in errors
    assert b"bug" not in errors
    if may_be_mounted and mounting.returncode == 0:
        assert litereplica("umount", path).returncode == 0
        return True
    pattern = f"litereplica mount .* {path} "
    wait_until(lambda: subprocess.run(["pgrep", "-f", pattern], capture_output=True, check=False).returncode == 1)
    assert not is_mounted(path), errors
    return False


def test_mount_point_that_is_a_link_is_the_directory_that_it_leads_to(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "relative").symlink_to("mnt")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "relative")
    arguments = ["--name", "app.db", "--cache-dir", str(tmp_path / "cache")]
    assert litereplica("mount", publisher.url, link, *arguments).returncode == 0
    try:
        again = litereplica("mount", publisher.url, link, *arguments)
        assert (again.returncode, "is already a mount point" in again.stderr) == (ExitCode.USAGE, True)
        assert litereplica("status", link).returncode == 0
    finally:
        assert litereplica("umount", link).returncode == 0
    assert not is_mounted(tmp_path / "mnt")
    (tmp_path / "loop").symlink_to("loop")
    assert "too many symbolic links" in litereplica("mount", publisher.url, tmp_path / "loop").stderr
    (tmp_path / "dangling").symlink_to("nothing")
    assert f"{tmp_path}/nothing does not exist" in litereplica("mount", publisher.url, tmp_path / "dangling").stderr
    os.chown(tmp_path / "relative", 65_534, 65_534, follow_symlinks=False)
    assert "that another user made" in litereplica("mount", publisher.url, link).stderr


# --- the end ---------------------------------------------------------------------------------------


def test_umount_ends_the_daemon_and_leaves_the_directory_as_it_was(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount:
        pid = mount.pid
        mount.umount()
        assert not is_mounted(mount.mountpoint)
        assert list(mount.mountpoint.iterdir()) == []
        wait_for_end(pid, within_s=0.1)


def test_umount_with_a_client_inside_says_who_and_the_mount_stays(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount, Client(mount.path) as client:
        done = litereplica("umount", mount.mountpoint)
        assert done.returncode == ExitCode.ENVIRONMENT
        assert f"(pid {client.pid})" in done.stderr
        assert "--lazy" in done.stderr
        assert done.stderr.count("\n") == 1
        mount.wait_for(insert(publisher, 1))
        assert len(rows(mount.path)) == 2
        assert client.ask() == "(1, 0)"


def test_a_gentle_stop_that_is_refused_by_the_kernel_leaves_the_mount_working(
    publisher: Publisher, tmp_path: Path
) -> None:
    """A process may be inside with no file open that the daemon knows of: only the kernel can tell."""
    with MountedReplica(publisher.url, tmp_path, expected_problems=["not unmounted"], poll_interval="5ms") as mount:
        directory = os.open(mount.mountpoint, os.O_PATH)
        try:
            for number in range(1, 6):
                os.kill(mount.pid, signal.SIGUSR1)
                mount.wait_for(insert(publisher, number))
                wait_until(partial(refused, mount, number))
            assert len(rows(mount.path)) == 6
        finally:
            os.close(directory)


def test_lazy_umount_frees_the_path_and_the_client_inside_reads_on(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount, Client(mount.path) as client:
        pid = mount.pid
        mount.umount(lazy=True)
        assert not is_mounted(mount.mountpoint)
        assert list(mount.mountpoint.iterdir()) == []
        insert(publisher, 1)
        assert client.ask() == client.first == "(1, 0)"
        assert Path(f"/proc/{pid}").exists()
        client.end()
        wait_for_end(pid)
        mount.kill()  # has nothing left to do


def test_a_mount_that_someone_else_detaches_ends_with_its_last_client(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount, Client(mount.path) as client:
        pid = mount.pid
        subprocess.run(["fusermount3", "-uz", mount.mountpoint], check=True)
        assert client.ask() == client.first
        client.end()
        wait_for_end(pid)
        mount.kill()  # has nothing left to do


def test_a_mount_that_someone_else_detaches_while_nobody_is_inside_ends_at_once(
    publisher: Publisher, tmp_path: Path
) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount:
        pid = mount.pid
        subprocess.run(["fusermount3", "-uz", mount.mountpoint], check=True)
        wait_for_end(pid)
        mount.kill()  # has nothing left to do


def test_sigterm_with_clients_inside_ends_the_daemon_in_time_and_frees_the_path(
    publisher: Publisher, tmp_path: Path
) -> None:
    expected = ["detaching .* while it is in use"]
    with MountedReplica(publisher.url, tmp_path, expected_problems=expected) as mount, Client(mount.path) as client:
        pid = mount.pid
        os.kill(pid, signal.SIGTERM)
        wait_for_end(pid, within_s=STOP_DEADLINE_S)
        mount.kill()  # has nothing left to do
        assert not is_mounted(mount.mountpoint)
        assert f"(pid {client.pid})" in mount.log


def test_sigterm_while_a_client_waits_for_a_store_that_does_not_answer(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    with Publisher(tmp_path / "primary", setup=SETUP + BIG) as publisher, s3_bucket.server.client() as s3:
        for file in publisher.replica.glob("ltx/0/*.ltx"):
            s3.put_object(Bucket=s3_bucket.name, Key=f"app.db/0000/{file.name}", Body=file.read_bytes())
        expected = ["polling fails", "detaching", "read: "]
        with MountedReplica(s3_bucket.url, tmp_path, options=["--no-hydrate"], expected_problems=expected) as mount:
            pid = mount.pid
            with Client(mount.path):
                os.kill(s3_bucket.server.pid, signal.SIGSTOP)
                try:
                    query = ["sqlite3", str(mount.path), "SELECT sum(length(value)) FROM big"]
                    waiting = subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                    with pytest.raises(subprocess.TimeoutExpired):
                        waiting.communicate(timeout=0.5)
                    os.kill(pid, signal.SIGTERM)
                    wait_for_end(pid, within_s=STOP_DEADLINE_S)
                    waiting.communicate(timeout=STOP_DEADLINE_S)
                finally:
                    os.kill(s3_bucket.server.pid, signal.SIGCONT)
            assert not is_mounted(mount.mountpoint)
            mount.kill()  # has nothing left to do


@pytest.mark.slow
def test_a_daemon_that_is_stopped_is_reported_and_can_be_detached(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount:
        os.kill(mount.pid, signal.SIGSTOP)
        try:
            done = litereplica("umount", mount.mountpoint)
            assert done.returncode == ExitCode.ENVIRONMENT
            assert "does not answer" in done.stderr
            assert is_mounted(mount.mountpoint)
            done = litereplica("umount", "--lazy", mount.mountpoint)
            assert (done.returncode, done.stderr) == (0, "")
            assert not is_mounted(mount.mountpoint)
        finally:
            os.kill(mount.pid, signal.SIGCONT)
        wait_for_end(mount.pid)
        mount.kill()  # has nothing left to do


BUG = """
import sys
from pathlib import Path
import trio
from litereplica.fuse import live_service, mount
from tests.e2e.healing_mount import opened

async def fail(*_, **__):
    raise ZeroDivisionError

live_service.run_poller = fail
options = mount.MountOptions(url=sys.argv[1], path=Path(sys.argv[2]), name="app.db", poll_interval_s=1.0)
trio.run(mount.serve, options, opened(sys.argv[1]), lambda: None)
"""


def test_a_bug_in_the_daemon_ends_it_and_frees_the_path(publisher: Publisher, tmp_path: Path) -> None:
    """Its own files are open when it calls the program that unmounts: they must not make that wait for it."""
    path = tmp_path / "mnt"
    path.mkdir()
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", BUG, publisher.url, str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=DEADLINE_S)
        assert "ZeroDivisionError" in errors
        assert not is_mounted(path)
    finally:
        process.kill()
        if is_mounted(path):
            subprocess.run(["umount", "-f", path], check=False)  # only this reaches a child that waits for us
            mountpoints.unmount(path, lazy=True)
        process.communicate()


def test_umount_of_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    done = litereplica("umount", tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert f"no replica is mounted at {tmp_path}" in done.stderr


# --- one after the other, side by side ------------------------------------------------------------


def test_a_mount_point_can_be_used_again(publisher: Publisher, tmp_path: Path) -> None:
    for number in range(1, 4):
        insert(publisher, number)
        with MountedReplica(publisher.url, tmp_path) as mount:
            assert len(rows(mount.path)) == number + 1


@pytest.mark.slow
def test_after_kill_9_at_any_moment_the_same_place_and_cache_serve_the_right_content(
    publisher: Publisher, tmp_path: Path
) -> None:
    random = Random(1)
    number = 0
    for _ in range(5):
        mount = MountedReplica(publisher.url, tmp_path, poll_interval="1ms")
        with mount:
            for _ in range(random.randint(1, 40)):
                number += 1
                insert(publisher, number)
            mount.kill()
        assert mountpoints.mount_at(mountpoints.absolute(mount.mountpoint)) is None
    with MountedReplica(publisher.url, tmp_path) as mount:
        assert mount.pos().txid == publisher.txid
        assert rows(mount.path) == [(0, "zero"), *((i, f"value {i}") for i in range(1, number + 1))]


def test_a_dead_mount_point_is_taken_away_by_the_next_mount(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount:
        mount.kill()
        with pytest.raises(OSError, match=r"not connected|connection abort"):
            mount.mountpoint.stat()
        mount.start()
        assert rows(mount.path) == [(0, "zero")]


def test_a_dead_mount_is_noticed_although_the_kernel_has_its_attributes(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount:
        for path in (mount.mountpoint, mount.path):
            path.stat()
        mount.kill()
        for _ in range(2):  # as shells and backup programs do, before and after
            with contextlib.suppress(OSError):
                mount.mountpoint.stat()
        mount.start()
        assert rows(mount.path) == [(0, "zero")]


def test_umount_right_after_a_client_has_closed_waits_for_the_kernel_to_say_so(
    publisher: Publisher, tmp_path: Path
) -> None:
    with MountedReplica(publisher.url, tmp_path, options=["--no-hydrate"]) as mount:
        for _ in range(3):
            client = subprocess.Popen(["sqlite3", str(mount.path), "SELECT count(*) FROM t"], stdout=subprocess.DEVNULL)
            client.wait()
            mount.umount()
            mount.start()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2, signal.SIGALRM])
def test_a_signal_that_is_not_for_a_daemon_does_not_end_it(
    number: signal.Signals, publisher: Publisher, tmp_path: Path
) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount:
        os.kill(mount.pid, number)
        mount.wait_for(insert(publisher, 1))
        assert len(rows(mount.path)) == 2


def test_where_nothing_is_mounted_no_database_can_be_made(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount:
        mount.umount()
        assert mount.mountpoint.stat().st_mode & 0o222 == 0
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", "sqlite3", mount.path, "CREATE TABLE t (x)"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert list(mount.mountpoint.iterdir()) == []
        mount.start()
        assert rows(mount.path) == [(0, "zero")]


# --- further mounts of the same file system ----------------------------------------------------------


class PrivateNamespace:
    """A process with a mount namespace of its own, in which nothing changes when something is unmounted outside.

    Of the mounts of replicas it keeps that at `path` alone, so that no other test's mount is in use by it.
    """

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *in_a_namespace(keep=path), "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.pid = self._process.pid
        self.run("true")

    def run(self, command: str) -> str:
        """Start a command there; what it prints, and `exit CODE`, within the deadline."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        os.write(self._process.stdin.fileno(), f"{command}; echo exit $?\n".encode())
        output = b""
        while not re.search(rb"^exit \d+\n\Z", output, re.MULTILINE):
            ready, _, _ = select.select([self._process.stdout], [], [], DEADLINE_S)
            assert ready, f"{command!r} does not end"
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            assert piece, "the shell has ended"
            output += piece
        return output.decode().strip()

    def __enter__(self) -> PrivateNamespace:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_umount_names_the_copy_of_the_mount_in_another_namespace(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount:
        with PrivateNamespace(mount.mountpoint) as container:
            done = litereplica("umount", mount.mountpoint)
            assert done.returncode == ExitCode.ENVIRONMENT
            assert f"as process {container.pid} sees it" in done.stderr
            assert container.run(f"sqlite3 {mount.path} 'SELECT count(*) FROM t'") == "1\nexit 0"
        mount.umount()


def test_umount_names_a_bind_mount(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with MountedReplica(publisher.url, tmp_path) as mount:
        subprocess.run(["mount", "--bind", mount.mountpoint, tmp_path / "other"], check=True)
        try:
            done = litereplica("umount", mount.mountpoint)
            assert (done.returncode, str(tmp_path / "other") in done.stderr) == (ExitCode.ENVIRONMENT, True)
        finally:
            subprocess.run(["umount", tmp_path / "other"], check=True)
        mount.umount()


def test_a_namespace_that_follows_ours_does_not_keep_the_mount(publisher: Publisher, tmp_path: Path) -> None:
    """As services of systemd have them: their mounts are slaves of ours."""
    shared = tmp_path / "shared"
    shared.mkdir()
    subprocess.run(["mount", "--bind", shared, shared], check=True)
    try:
        subprocess.run(["mount", "--make-shared", shared], check=True)
        with MountedReplica(publisher.url, shared) as mount:
            command = [*in_a_namespace(keep=mount.mountpoint, propagation="slave"), "sleep", "60"]
            with subprocess.Popen(command, stdin=subprocess.DEVNULL) as service:
                try:
                    wait_until(lambda: Path(f"/proc/{service.pid}/cmdline").read_bytes().startswith(b"sleep"))
                    assert str(mount.mountpoint) in Path(f"/proc/{service.pid}/mountinfo").read_text()
                    mount.umount()
                finally:
                    service.kill()
    finally:
        subprocess.run(["umount", "--lazy", shared], check=True)


def test_a_copy_is_served_after_the_mount_itself_was_detached(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount:
        pid = mount.pid
        with PrivateNamespace(mount.mountpoint) as container:
            mount.umount(lazy=True)
            txid = insert(publisher, 1)
            assert container.run(f"while ! grep -q {txid:016x} {mount.path}-pos; do :; done") == "exit 0"
            assert container.run(f"sqlite3 {mount.path} 'SELECT count(*) FROM t'") == "2\nexit 0"
        wait_for_end(pid)
        mount.kill()  # has nothing left to do


def test_sigterm_ends_a_daemon_whose_mount_has_a_copy(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount, PrivateNamespace(mount.mountpoint) as container:
        pid = mount.pid
        assert container.run(f"sqlite3 {mount.path} 'SELECT count(*) FROM t'") == "1\nexit 0"
        os.kill(pid, signal.SIGTERM)
        wait_for_end(pid, within_s=STOP_DEADLINE_S)
        assert "not connected" in container.run(f"cat {mount.path}-pos")
        mount.kill()  # has nothing left to do


def test_umount_takes_a_dead_mount_away(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount:
        mount.kill()
        done = litereplica("umount", mount.mountpoint)
        assert (done.returncode, done.stderr) == (0, "")
        assert not is_mounted(mount.mountpoint)


def test_two_mounts_of_one_replica_with_one_cache_both_work(publisher: Publisher, tmp_path: Path) -> None:
    options = ["--cache-dir", str(tmp_path / "shared")]
    with (
        MountedReplica(publisher.url, tmp_path / "one", options=options) as one,
        MountedReplica(publisher.url, tmp_path / "two", options=options, expected_problems=["cache"]) as two,
    ):
        txid = insert(publisher, 1)
        for mount in (one, two):
            mount.wait_for(txid)
            assert len(rows(mount.path)) == 2
        one.umount()
        two.wait_for(insert(publisher, 2))
        assert len(rows(two.path)) == 3


def test_clients_and_transactions_that_come_and_go_leave_nothing_open(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount:

        def in_use() -> tuple[int, int]:
            process = Path(f"/proc/{mount.pid}")
            return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))

        def visit(number: int) -> None:
            mount.wait_for(insert(publisher, number))
            assert len(rows(mount.path)) == number + 1
            (mount.mountpoint / STATUS_NAME).read_bytes()
            list(mount.mountpoint.iterdir())

        for number in range(1, 20):
            visit(number)
        fds, threads = in_use()
        for number in range(20, 60):
            visit(number)
        wait_until(lambda: in_use()[0] <= fds)
        assert in_use()[1] <= threads + 2
        children = Path(f"/proc/{mount.pid}/task/{mount.pid}/children").read_text()
        assert children == ""


def test_the_status_tells_who_and_where(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount:
        status = json.loads((mount.mountpoint / STATUS_NAME).read_bytes())
        assert status["pid"] == mount.pid
        assert status["url"] == publisher.url
        assert status["mountpoint"] == str(mount.mountpoint)
        assert status["name"] == "app.db"
