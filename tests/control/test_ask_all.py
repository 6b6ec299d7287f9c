"""What root's `status` asks and believes of the daemons of other users."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from litereplica.cli.daemon_status import Subject, find_records, require_healthy, show_records
from litereplica.control.client import MAX_FOREIGN_BYTES, ask_all
from litereplica.control.sockets import SocketDirectory
from litereplica.errors import EnvironmentProblem, NotReached

ALICE = 65_534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def answer(document: object) -> Callable[[socket.socket], None]:
    body = json.dumps(document).encode()

    def send(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(HEAD % len(body) + body)

    return send


def stay_silent(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    signal.pause()


def send_without_end(connection: socket.socket) -> None:
    connection.sendall(HEAD % (MAX_FOREIGN_BYTES * 4))
    while True:
        connection.sendall(b" " * (1 << 20))


@contextmanager
def daemon_of(uid: int, path: Path, respond: Callable[[socket.socket], None]) -> Iterator[None]:
    """A process of a user that accepts connections at a socket in a directory of that user."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    os.chown(path, uid, uid)
    child = os.fork()
    if child == 0:
        try:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            listener.listen()  # the kernel names the process that listens
            while True:
                connection, _ = listener.accept()
                try:
                    respond(connection)
                except OSError:
                    connection.close()
        finally:
            os._exit(0)
    listener.close()
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture
def alices(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of sockets of the other user, the only one of the registry."""
    directory = Path(f"/tmp/lr-alice-{os.getpid()}")  # noqa: S108 - made here
    directory.mkdir(mode=0o755)
    os.chown(directory, ALICE, ALICE)
    monkeypatch.setattr(
        "litereplica.control.client.registry", lambda environment, uid: [SocketDirectory(directory, ALICE)]
    )
    yield directory
    shutil.rmtree(directory)


RECORD = {"db_path": "/home/alice/\x1b[2J.db", "state": "active", "txid": "1", "lag_ms": 0, "url": "s3://x"}


def wait_for_listener(path: Path) -> None:
    for _ in range(1000):
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                return
        signal.sigtimedwait([], 0.005)
    pytest.fail("nobody listens")


def test_an_honest_daemon_of_another_user_is_shown_and_its_text_does_no_harm(
    alices: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {"kind": "writer", "pid": 7, "databases": [RECORD]}
    with daemon_of(ALICE, alices / "1.sock", answer(document)):
        wait_for_listener(alices / "1.sock")
        records = find_records(Subject())
        assert [record["db_path"] for record in records] == [RECORD["db_path"]]
        for as_json in (False, True):
            show_records(records, Subject(), as_json=as_json)
        assert "\x1b" not in capsys.readouterr().out
        require_healthy(records, max_lag_s=1)
        with pytest.raises(NotReached, match=r"is 2\.0 s behind"):
            require_healthy([{**RECORD, "lag_ms": 2000}], max_lag_s=1)


@pytest.mark.parametrize(
    "respond",
    [pytest.param(stay_silent, marks=pytest.mark.slow), send_without_end, lambda connection: connection.close()],
)
def test_one_that_misbehaves_is_left_out_and_the_others_are_not_waited_for(
    alices: Path, respond: Callable[[socket.socket], None]
) -> None:
    with daemon_of(ALICE, alices / "1.sock", respond):
        wait_for_listener(alices / "1.sock")
        for number in range(2, 60):
            (alices / f"{number}.sock").symlink_to("1.sock")
        assert list(ask_all({}, target="/status", warn=pytest.fail)) == []


def test_a_silent_daemon_of_ones_own_is_named_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("litereplica.control.client.ANSWER_LIMIT_S", 0.2)
    directory = SocketDirectory(tmp_path, 0)
    monkeypatch.setattr("litereplica.control.client.registry", lambda environment, uid: [directory])
    said: list[str] = []
    document = {"kind": "writer", "databases": []}
    with (
        daemon_of(0, tmp_path / "1.sock", stay_silent),
        daemon_of(0, tmp_path / "2.sock", lambda connection: connection.sendall(b"{}")),
        daemon_of(0, tmp_path / "3.sock", answer(document)),
    ):
        for number in (1, 2, 3):
            wait_for_listener(tmp_path / f"{number}.sock")
        found = list(ask_all({}, target="/status", warn=said.append))
    assert [each.socket.name for each in found] == ["3.sock"]
    assert ["1.sock" in said[0], "2.sock" in said[1], len(said)] == [True, True, 2], said


def test_a_link_to_a_socket_of_somebody_else_is_not_followed_into_a_request(alices: Path, tmp_path: Path) -> None:
    """Root's own daemon, or another service of root, gets no byte because a user planted a link to it."""
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(tmp_path / "service"))
        service.listen()
        (alices / "1.sock").symlink_to(tmp_path / "service")
        assert list(ask_all({}, target="/status", warn=pytest.fail)) == []
        connection, _ = service.accept()
        with connection:
            assert connection.recv(1) == b"", "nothing was asked"


@pytest.mark.parametrize(
    "records",
    [[7], [{}], [{"db_path": 1}], [{**RECORD, "lag_ms": "x"}], [{**RECORD, "lease": 5}]],
)
def test_a_document_of_another_form_is_an_error_of_one_line(alices: Path, records: list[object]) -> None:
    document = {"kind": "writer", "databases": records}
    with daemon_of(ALICE, alices / "1.sock", answer(document)):
        wait_for_listener(alices / "1.sock")
        with pytest.raises(EnvironmentProblem, match="unexpected form"):
            show_records(find_records(Subject()), Subject(), as_json=False)


def test_commands_that_only_ask_import_nothing_heavy() -> None:
    """The event loop, arrays, stores and SQLite take most of the time of a start."""
    import subprocess

    source = (
        "import sys; from litereplica.cli.main import run; code = run(sys.argv[1:]); "
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    heavy = {"trio", "numpy", "boto3", "apsw", "rich", "sqlite3", "yaml", "pyfuse3", "asyncio", "dateparser"}
    for arguments in (["status", "/no/such.db"], ["health", "/no/such.db"], ["sync", "/no/such.db"]):
        done = subprocess.run([sys.executable, "-c", source, *arguments], capture_output=True, text=True, check=False)
        assert not heavy & set(done.stderr.splitlines()[-1].split()), arguments
