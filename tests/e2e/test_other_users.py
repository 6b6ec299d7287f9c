"""Mounts and commands of different users: root sees and ends every mount, others get one line that says whose it is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.control.sockets import ROOT_DIRECTORY
from litereplica.errors import ExitCode
from litereplica.testing.mounts import litereplica_binary, wait_for_end
from tests.helpers.json_language import require_printed
from tests.helpers.publisher import Publisher

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("nsenter") is None, reason="needs root, and two users"),
]

USER = 65534
AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
AS_USER += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # Python may lie in root's home
"""The capability lets the user read files; FUSE, signals and mounting do not go by it."""
LET_GO = "awk '/fuse.litereplica/ { print $5 }' /proc/self/mountinfo | while read copy; do umount -l \"$copy\"; done"
"""Copies of the mounts of tests that run beside this one would keep those alive."""


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    with Publisher(tmp_path / "primary", setup="CREATE TABLE t (x)") as publisher:
        yield publisher


class Machine:
    """A mount namespace in which every user may open /dev/fuse, as distributions have it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "sh", "-c"]
        self._init = subprocess.Popen(
            [
                *command,
                f"{LET_GO}; mknod -m 666 {directory}/fuse c 10 229 && mount --bind {directory}/fuse /dev/fuse"
                " && echo && cat",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == b"\n"

    def run(self, *command: str | Path, user: bool = False) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--target={self._init.pid}", "--mount"]
        return subprocess.run(
            [*enter, *(AS_USER if user else []), litereplica_binary(), *map(str, command)],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"HOME": str(self._directory), "XDG_RUNTIME_DIR": ""},
            check=False,
        )

    def mount(self, url: str, *options: str | Path, user: bool) -> Path:
        """The mount point of a mount that `user` makes."""
        place = self._directory / "mnt"
        place.mkdir()
        if user:
            for path in (self._directory, place):
                os.chown(path, USER, USER)
        done = self.run(
            "mount", url, place, "--name", "app.db", "--cache-dir", place.parent / "cache", *options, user=user
        )
        assert done.returncode == 0, done.stderr
        return place

    def close(self) -> None:
        self._init.communicate()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)
    directory = tmp_path / "machine"
    directory.mkdir()
    machine = Machine(directory)
    try:
        yield machine
    finally:
        machine.run("umount", "--lazy", directory / "mnt")
        machine.close()


def pid_of(machine: Machine, place: Path) -> int:
    done = machine.run("status", place)
    assert done.returncode == 0, done.stderr
    return next(int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("process"))


def test_root_sees_and_ends_the_mount_of_another_user(publisher: Publisher, machine: Machine) -> None:
    place = machine.mount(publisher.url, user=True)
    pid = pid_of(machine, place)
    done = machine.run("umount", place)
    assert (done.returncode, done.stderr) == (0, "")
    wait_for_end(pid)


def test_root_takes_the_dead_mount_of_another_user_away(publisher: Publisher, machine: Machine) -> None:
    place = machine.mount(publisher.url, user=True)
    pid = pid_of(machine, place)
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    status = machine.run("status", place)
    assert (status.returncode, "is dead" in status.stderr) == (ExitCode.ENVIRONMENT, True)
    again = machine.run("mount", publisher.url, place, "--name", "app.db", "--cache-dir", place.parent / "other")
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.parametrize("allow_other", [False, True])
@pytest.mark.parametrize("command", [["umount"], ["umount", "--lazy"], ["status"]])
def test_other_users_are_told_whose_mount_it_is(
    command: list[str], allow_other: bool, publisher: Publisher, machine: Machine
) -> None:
    place = machine.mount(publisher.url, *(["--allow-other"] if allow_other else []), user=False)
    done = machine.run(*command, place, user=True)
    if command == ["status"] and allow_other:
        assert (done.returncode, done.stderr) == (0, "")
        assert f"position     {1:016x}" in done.stdout
        assert publisher.url not in done.stdout
        assert not {"process", "replica", "log file", "cache"} & {
            line.split("  ")[0] for line in done.stdout.splitlines()
        }
    else:
        line = f"litereplica: error: the mount at {place} belongs to root: run the command as that user, or as root\n"
        assert (done.returncode, done.stderr) == (ExitCode.ENVIRONMENT, line)
    assert pid_of(machine, place)


def test_root_sees_and_asks_the_writer_of_a_services_user_and_that_user_does_not_see_roots(tmp_path: Path) -> None:
    """As a systemd unit with `RuntimeDirectory=litereplica/…` runs it, whatever /tmp it has."""
    for each in (tmp_path, *tmp_path.parents):
        if "pytest-" in str(each):  # not /tmp itself, which all users write to
            each.chmod(0o755)
    service, own = tmp_path / "service", tmp_path / "root.db"
    service.mkdir()
    for path in (service / "app.db", own):
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript("CREATE TABLE t (x)")
        os.chown(path, USER if path != own else 0, -1)
    os.chown(service, USER, USER)
    runtime = ROOT_DIRECTORY / f"test-{os.getpid()}"
    runtime.mkdir(parents=True, mode=0o755)
    os.chown(runtime, USER, USER)
    environment = os.environ | {"RUNTIME_DIRECTORY": str(runtime), "HOME": str(service), "XDG_RUNTIME_DIR": ""}
    as_root = os.environ | {"XDG_RUNTIME_DIR": ""}
    writers = [
        subprocess.Popen(
            [*prefix, litereplica_binary(), "replicate", path, f"file://{path}-replica"],
            env=env,
            stderr=subprocess.DEVNULL,
        )
        for prefix, path, env in [(AS_USER, service / "app.db", environment), ([], own, as_root)]
    ]

    def ask(*arguments: str | Path, user: bool) -> subprocess.CompletedProcess[str]:
        command = [*(AS_USER if user else []), litereplica_binary(), *map(str, arguments)]
        env = environment if user else as_root
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
        require_printed(command, done.stdout)
        return done

    try:
        deadline = time.monotonic() + 30
        while any(ask("health", path, user=False).returncode for path in (service / "app.db", own)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (record,) = json.loads(ask("status", service / "app.db", "--json", user=False).stdout)["databases"]
        assert (record["pid"], record["state"]) == (writers[0].pid, "active")
        assert "txid: 1" in ask("sync", service / "app.db", "--wait", user=False).stdout
        assert "txid: 1" in ask("sync", service / "app.db", "--wait", user=True).stdout
        seen = json.loads(ask("status", "--json", user=True).stdout)["databases"]
        assert [each["db_path"] for each in seen] == [str(service / "app.db")]
        hidden = ask("sync", own, "--wait", user=True)
        assert (hidden.returncode, "no running writer has" in hidden.stderr) == (ExitCode.ENVIRONMENT, True)
        path = ROOT_DIRECTORY / f"{writers[1].pid}.sock"
        denied = ask("sync", own, "--socket", path, user=True)
        assert (denied.returncode, "Permission denied" in denied.stderr) == (ExitCode.ENVIRONMENT, True)
    finally:
        for writer in writers:
            writer.terminate()
            assert writer.wait(30) == ExitCode.OK
        runtime.rmdir()
