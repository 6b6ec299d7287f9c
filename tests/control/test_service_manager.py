"""What daemons tell systemd: a socket in its place receives what real processes send."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from litereplica.control import service_manager
from litereplica.control.manager_environment import VARIABLES
from litereplica.errors import ExitCode
from litereplica.testing.mounts import litereplica_binary
from tests.helpers.publisher import Publisher

DEADLINE_S = 30.0
WATCHDOG_S = 0.2
SILENCE_S = 5 * WATCHDOG_S


class Manager:
    """The socket of a service manager."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))

    def close(self) -> None:
        self._socket.close()

    @property
    def environment(self) -> dict[str, str]:
        watchdog = str(round(WATCHDOG_S * 1e6))
        return os.environ | {"NOTIFY_SOCKET": str(self.path), "WATCHDOG_USEC": watchdog, "XDG_RUNTIME_DIR": ""}

    def next(self, *, within_s: float = DEADLINE_S) -> dict[str, str] | None:
        """The fields of the next message; None if there is none in time."""
        self._socket.settimeout(within_s)
        try:
            text = self._socket.recv(4096).decode()
        except TimeoutError:
            return None
        return dict(line.split("=", 1) for line in text.splitlines())

    def wait_for(self, name: str) -> dict[str, str]:
        """The first message with a field of this name, with the last status before it as `STATUS`."""
        status: dict[str, str] = {}
        while (fields := self.next()) is not None:
            status |= {key: value for key, value in fields.items() if key == "STATUS"}
            if name in fields:
                return status | fields
        raise AssertionError(f"no {name}")

    def drain(self) -> None:
        while self.next(within_s=0.001) is not None:
            pass


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with closing(Manager(tmp_path)) as manager:
        yield manager


@contextmanager
def daemon(manager: Manager, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [litereplica_binary(), *map(str, arguments)]
    process = subprocess.Popen(command, env=manager.environment, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(DEADLINE_S)


def require_watchdog_and_reload(manager: Manager, process: subprocess.Popen[bytes]) -> None:
    """A stopped daemon is silent, one that goes on is not, and one that reads its settings again says so."""
    manager.wait_for("WATCHDOG")
    process.send_signal(signal.SIGSTOP)
    while ") T " not in Path(f"/proc/{process.pid}/stat").read_text():
        time.sleep(0.001)
    manager.drain()
    assert manager.next(within_s=SILENCE_S) is None
    process.send_signal(signal.SIGCONT)
    manager.wait_for("WATCHDOG")
    process.send_signal(signal.SIGHUP)
    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    assert before - 60 < int(manager.wait_for("RELOADING")["MONOTONIC_USEC"]) / 1e6 < before + 60
    manager.wait_for("READY")


@pytest.mark.slow
def test_writer_says_that_it_is_ready_alive_reloading_and_ending(tmp_path: Path, manager: Manager) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection:
        connection.executescript("CREATE TABLE t (x)")
    config, seen = tmp_path / "litereplica.yml", tmp_path / "environment"
    config.write_text(
        f"exec: sh -c 'env >{seen}; exec cat {tmp_path}/pipe'\n"
        f"dbs:\n  - path: {tmp_path}/app.db\n    replica:\n      url: file://{tmp_path}/replica\n"
    )
    os.mkfifo(tmp_path / "pipe")
    with daemon(manager, "replicate", "--config", config) as process:
        assert manager.wait_for("READY")["STATUS"] == "1 active"
        require_watchdog_and_reload(manager, process)
        while not seen.exists() or "PATH=" not in seen.read_text():
            time.sleep(0.001)
        assert not [name for name in VARIABLES if f"{name}=" in seen.read_text()]
        process.terminate()
        assert manager.wait_for("STOPPING")["STATUS"] == "ending"
        assert process.wait(DEADLINE_S) == ExitCode.OK


@pytest.mark.slow
def test_mount_says_that_it_is_ready_alive_reloading_and_ending(tmp_path: Path, manager: Manager) -> None:
    with Publisher(tmp_path / "primary", setup="CREATE TABLE t (x)") as publisher:
        url = publisher.url
    place = tmp_path / "mnt"
    place.mkdir()
    arguments: list[str | Path] = ["mount", url, place, "--name", "app.db", "--cache-dir", tmp_path / "cache"]
    with daemon(manager, *arguments, "--foreground") as process:
        assert manager.wait_for("READY")["STATUS"] == f"following at TXID {1:016x}"
        assert (place / "app.db").exists()
        require_watchdog_and_reload(manager, process)
        process.terminate()
        manager.wait_for("STOPPING")
        assert process.wait(DEADLINE_S) == ExitCode.OK
    manager.drain()
    with daemon(manager, *arguments) as process:  # its parent would be the one that systemd started
        assert process.wait(DEADLINE_S) == ExitCode.OK
        subprocess.run([litereplica_binary(), "umount", place], check=True)
    assert manager.next(within_s=0.001) is None


@pytest.mark.slow
def test_following_restore_says_that_it_is_ready_alive_and_reloading(tmp_path: Path, manager: Manager) -> None:
    with Publisher(tmp_path / "primary", setup="CREATE TABLE t (x)") as publisher:
        url = publisher.url
    with daemon(manager, "restore", "-f", url, "-o", tmp_path / "copy.db") as process:
        assert manager.wait_for("READY")["STATUS"] == f"following at TXID {1:016x}"
        require_watchdog_and_reload(manager, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == ExitCode.OK


def test_message_is_one_line_a_field_and_goes_to_a_path_or_an_abstract_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for address in (str(tmp_path / "socket"), f"\0litereplica-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(address)
            monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))
            service_manager.tell(READY="1", STATUS="two\nWATCHDOG=1")
            assert receiver.recv(4096) == b"READY=1\nSTATUS=two WATCHDOG=1"
        service_manager.tell(READY="1")  # nobody listens any more
    for nothing in ("", "relative", "vsock:1:2"):
        monkeypatch.setenv("NOTIFY_SOCKET", nothing)
        service_manager.tell(READY="1")


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("3000000", None, 3.0),
        ("3000000", "ours", 3.0),
        ("3000000", "1", None),
        ("0", None, None),
        ("x", None, None),
    ],
)
def test_watchdog_is_for_the_process_that_it_names(usec: str, pid: str | None, expected: float | None) -> None:
    named = {} if pid is None else {"WATCHDOG_PID": str(os.getpid()) if pid == "ours" else pid}
    environment = {"WATCHDOG_USEC": usec} | named
    assert service_manager.watchdog_s(environment) == expected
