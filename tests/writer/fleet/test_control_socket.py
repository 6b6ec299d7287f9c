"""The control socket: who may ask, what is told, and what it leaves behind."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest
import trio
import trio.testing

from litereplica.errors import EnvironmentProblem
from litereplica.ltxstore.lease_record import Lease
from litereplica.writer.fleet import control_socket
from litereplica.writer.fleet.control_socket import ask, encode, listening, serve, socket_directory
from litereplica.writer.fleet.statistics import DatabaseStatistics, FleetStatistics, State

pytestmark = pytest.mark.slow

DOCUMENT = b'{"databases": []}'


async def ask_served(path: Path, answer: bytes = DOCUMENT) -> dict[str, object] | None:
    with listening(path, own_directory=True) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener, lambda: answer)
            told = await trio.to_thread.run_sync(ask, path)
            nursery.cancel_scope.cancel()
    return told


async def test_whoever_connects_is_told(tmp_path: Path) -> None:
    assert await ask_served(tmp_path / "run/1.sock") == {"databases": []}


async def test_socket_and_its_directory_are_the_users_alone_and_it_goes_with_the_process(tmp_path: Path) -> None:
    path = tmp_path / "run/1.sock"
    with listening(path, own_directory=True):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == []
    assert ask(path) is None


async def test_socket_of_a_dead_process_makes_room_and_a_living_one_does_not(tmp_path: Path) -> None:
    dead, other_dead = tmp_path / "run/1.sock", tmp_path / "run/2.sock"
    dead.parent.mkdir(mode=0o700)
    for path in (dead, other_dead):
        with socket.socket(socket.AF_UNIX) as leftover:
            leftover.bind(str(path))
            leftover.listen()
    assert ask(dead) is None
    with listening(dead, own_directory=True):
        assert not other_dead.exists()
        with pytest.raises(EnvironmentProblem, match="File exists"), listening(dead, own_directory=True):
            pass
        assert dead.exists()


async def test_a_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    path.write_bytes(b"precious")
    with (
        pytest.raises(EnvironmentProblem, match="cannot create the control socket"),
        listening(path, own_directory=False),
    ):
        pass
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run").chmod(mode)
    with (
        pytest.raises(EnvironmentProblem, match=r"is not a private directory of this user: .*chmod 700"),
        listening(tmp_path / "run/1.sock", own_directory=True),
    ):
        pass


def test_a_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with (
        pytest.raises(EnvironmentProblem, match="not a private directory of this user"),
        listening(tmp_path / "run/1.sock", own_directory=True),
    ):
        pass


def test_a_path_that_no_address_can_hold_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(EnvironmentProblem, match=r"too long: set socket.path to a shorter one"),
        listening(tmp_path / ("x" * 120), own_directory=False),
    ):
        pass


@pytest.mark.parametrize(("uid", "told"), [(os.geteuid(), True), (0, True), (65534, False)])
@pytest.mark.logs("on the control socket")
async def test_other_users_are_told_nothing_whatever_the_file_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, told: bool
) -> None:
    monkeypatch.setattr(control_socket, "_peer_uid", lambda connection: uid)
    path = tmp_path / "run/1.sock"
    with listening(path, own_directory=True) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener, lambda: DOCUMENT)
            async with await trio.open_unix_socket(str(path)) as stream:
                assert await stream.receive_some() == (DOCUMENT if told else b"")
            nursery.cancel_scope.cancel()


async def test_the_user_that_connects_is_known(tmp_path: Path) -> None:
    with listening(tmp_path / "run/1.sock", own_directory=True) as listener:
        async with await trio.open_unix_socket(str(tmp_path / "run/1.sock")):
            with trio.socket.from_stdlib_socket(listener.dup()) as accepting:
                connection, _ = await accepting.accept()
            with connection:
                assert control_socket._peer_uid(connection) == os.geteuid()


async def test_one_who_leaves_at_once_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "run/1.sock"
    with listening(path, own_directory=True) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener, lambda: DOCUMENT)
            for _ in range(20):
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(str(path))
                await trio.testing.wait_all_tasks_blocked()
            assert await trio.to_thread.run_sync(ask, path) == {"databases": []}
            nursery.cancel_scope.cancel()


async def test_one_who_does_not_read_takes_no_more_than_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "ANSWER_LIMIT_S", 0.2)
    path = tmp_path / "run/1.sock"
    large = json.dumps({"x": "y" * (8 << 20)}).encode()
    with listening(path, own_directory=True) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener, lambda: large)
            streams = [await trio.open_unix_socket(str(path)) for _ in range(control_socket.MAX_CONNECTIONS)]
            with trio.fail_after(10):
                told = None
                while told is None:
                    told = await trio.to_thread.run_sync(_ask_or_none, path)
            for stream in streams:
                await stream.aclose()
            nursery.cancel_scope.cancel()
    assert told == json.loads(large)


def _ask_or_none(path: Path) -> dict[str, object] | None:
    try:
        return ask(path)
    except EnvironmentProblem:
        return None


@pytest.mark.parametrize("answer", [b"", b"hello", b"[1]", b"[" * 100_000])
async def test_what_tells_something_else_is_an_error_of_one_line(tmp_path: Path, answer: bytes) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(EnvironmentProblem, match="is not that of a writer")):
        await ask_served(tmp_path / "run/1.sock", answer)


def test_document_has_every_database_and_lease() -> None:
    lease = Lease(3, 1_700_000_000_000, "host:1", "secret-id")
    database = DatabaseStatistics(Path("/a.db"), "s3://b/a", State.FAILED, txid=26, error="disk full", behind_s=1.5)
    document = json.loads(encode({"pid": 1}, FleetStatistics((database,), {"s3://b": lease})))
    assert document["pid"] == 1
    (record,) = document["databases"]
    assert record["db_path"] == "/a.db"
    assert (record["state"], record["txid"], record["error"]) == ("failed", "000000000000001a", "disk full")
    assert (record["behind_s"], record["lease"]) == (1.5, None)
    assert document["leases"] == {
        "s3://b": {"owner": "host:1", "generation": 3, "expires_at": "2023-11-14T22:13:20.000Z"}
    }


@pytest.mark.parametrize(
    ("environment", "uid", "expected"),
    [
        ({"XDG_RUNTIME_DIR": "/run/user/1000"}, 1000, "/run/user/1000/litereplica"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/litereplica"),
        ({"XDG_RUNTIME_DIR": "relative", "TMPDIR": "/scratch"}, 1000, "/scratch/litereplica-1000"),
    ],
)
def test_sockets_of_a_user_are_in_one_place(environment: dict[str, str], uid: int, expected: str) -> None:
    assert socket_directory(environment, uid=uid) == Path(expected)
