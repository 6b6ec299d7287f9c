"""The sockets of daemons: where they are, who may ask, what is told, and what is left behind."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import trio
import trio.testing
from hypothesis import strategies as st

from litereplica.control import http
from litereplica.control.client import ask
from litereplica.control.http import MAX_BODY_BYTES, Refusal, Request, Response, Route, json_response, serve
from litereplica.control.sockets import listening, own_directory, registry
from litereplica.errors import ControlError, EnvironmentProblem, ExitCode, NotReached

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs several users")


async def hello(request: Request) -> Response:
    return json_response({"query": request.query, "method": request.method})


async def echo(request: Request) -> Response:
    return json_response(request.fields())


async def refuse(request: Request) -> Response:
    raise Refusal(HTTPStatus.CONFLICT, "no", details="do something else")


async def run_out(request: Request) -> Response:
    raise NotReached("too late")


async def break_down(request: Request) -> Response:
    raise ZeroDivisionError


async def large(request: Request) -> Response:
    return json_response({"x": "y" * (8 << 20)})


ROUTES = [
    Route("GET", "/hello", hello),
    Route("POST", "/echo", echo),
    Route("POST", "/refuse", refuse),
    Route("POST", "/late", run_out),
    Route("POST", "/break", break_down),
    Route("GET", "/large", large),
]


async def served(path: Path, work: Callable[[], Any], **options: Any) -> Any:
    """What `work` returns in a thread while the routes are served at `path`."""
    with listening(path, registered=True) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve, listener, ROUTES, **options))
            told = await trio.to_thread.run_sync(work)
            nursery.cancel_scope.cancel()
    return told


def exchange(path: Path, *parts: bytes) -> bytes:
    """What the server sends for these bytes until it ends the connection."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        received = b""
        for part in parts:
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        while data := connection.recv(1 << 16):
            received += data
    return received


@pytest.mark.logs("POST /break failed")
async def test_requests_are_answered_and_every_wrong_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run/1.sock"

    def work() -> None:
        assert ask(path, "GET", "/hello?a=%2Fx&b=") == {"query": {"a": "/x", "b": ""}, "method": "GET"}
        assert ask(path, "POST", "/echo", {"é": [1, None]}) == {"é": [1, None]}
        for target, status, code, text in [
            ("/refuse", 409, ExitCode.CONFLICT, "no: do something else"),
            ("/late", 408, ExitCode.NOT_REACHED, "too late"),
            ("/break", 500, ExitCode.ENVIRONMENT, "internal error: ZeroDivisionError: see the daemon's log"),
        ]:
            with pytest.raises(ControlError) as refused:
                ask(path, "POST", target, {})
            assert (refused.value.status, refused.value.exit_code, str(refused.value)) == (status, code, text)
        with pytest.raises(EnvironmentProblem, match="is not that of litereplica"):
            ask(path, "GET", "/nothing")
        with pytest.raises(EnvironmentProblem, match="is not that of litereplica"):
            ask(path, "GET", "/large", max_bytes=1 << 20)
        two = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n" * 2
        assert exchange(path, two).count(b"HTTP/1.1 200 OK") == 2, "a connection is kept"
        head = exchange(path, b"HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (head.count(b"200 OK"), head.endswith(b"\r\n\r\n")) == (1, True)
        assert b"Allow: POST\r\n" in exchange(path, b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 404 Not Found" in exchange(path, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        too_long = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000
        for wrong in (b"garbage\r\n\r\n", b"GET /hello HTTP/1.1\r\n\r\n", too_long):
            assert b"HTTP/1.1 4" in exchange(path, wrong)
        post = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
        for body, refusal in [(b"[1]", b"400"), (b"[" * 60_000, b"400"), (b"x" * (MAX_BODY_BYTES + 1), b"413")]:
            assert b"HTTP/1.1 " + refusal in exchange(path, post % (len(body), body))
        assert ask(path, "GET", "/hello") is not None, "it goes on"

    await served(path, work)
    assert ask(path, "GET", "/hello") is None


PARTS = st.sampled_from(
    [b"GET ", b"POST ", b"HEAD ", b"CONNECT ", b"/hello", b"/echo", b"//[", b"http://[::1", b"*", b"?a=%zz&&=",
     b" HTTP/1.1",
     b" HTTP/1.0", b"\r\n", b"\r\n\r\n", b"Host: x\r\n", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n",
     b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
     b"Connection: close\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"{}", b"\xff\x00"]
)  # fmt: skip
HEAD = b"GET /hello HTTP/1.1\r\nHost: x\r\n"
NOT_IMPLEMENTED = b"HTTP/1.1 501 "
"""The answer to several transfer codings, as HTTP has it."""
HEADS = st.sampled_from([HEAD, b"POST /echo HTTP/1.1\r\nHost: x\r\n", b""])


async def test_no_bytes_end_the_daemon_or_are_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "run/1.sock"

    @hypothesis.given(HEADS, st.lists(PARTS | st.binary(max_size=20), max_size=8))
    @hypothesis.settings(max_examples=150)
    @hypothesis.example(b"", [b"GET //[ HTTP/1.1\r\nHost: x\r\n\r\n"])
    @hypothesis.example(HEAD, 2 * [b"Transfer-Encoding: chunked\r\n"] + [b"\r\n"])
    def send(head: bytes, parts: list[bytes]) -> None:
        try:
            received = exchange(path, head, *parts)
        except (BrokenPipeError, ConnectionResetError):
            return
        assert not received or received.startswith(b"HTTP/1.1 ")
        assert b"HTTP/1.1 5" not in received.replace(NOT_IMPLEMENTED, b"")

    def work() -> None:
        send()
        assert ask(path, "GET", "/hello") is not None

    await served(path, work)


async def test_socket_and_its_directory_are_the_users_and_it_goes_with_the_process(tmp_path: Path) -> None:
    path = tmp_path / "run/1.sock"
    with listening(path, registered=True):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with listening(path, registered=False, mode=0o660):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert list(path.parent.iterdir()) == []


async def test_socket_of_a_dead_process_makes_room_and_a_living_one_does_not(tmp_path: Path) -> None:
    dead, other_dead = tmp_path / "run/1.sock", tmp_path / "run/2.sock"
    dead.parent.mkdir(mode=0o700)
    for path in (dead, other_dead):
        with socket.socket(socket.AF_UNIX) as leftover:
            leftover.bind(str(path))
            leftover.listen()
    assert ask(dead, "GET", "/") is None
    with listening(dead, registered=True):
        assert not other_dead.exists()
        with pytest.raises(EnvironmentProblem, match="File exists"), listening(dead, registered=True):
            pass
        assert dead.exists()


def test_a_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    path.write_bytes(b"precious")
    with (
        pytest.raises(EnvironmentProblem, match="cannot create the control socket"),
        listening(path, registered=False),
    ):
        pass
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    with (
        pytest.raises(EnvironmentProblem, match=r"is not a private directory of this user: .*chmod 700"),
        listening(tmp_path / "run/1.sock", registered=True),
    ):
        pass


def test_a_directory_that_is_a_link_and_a_path_that_is_too_long_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "real")
    for path, registered, text in [
        (tmp_path / "run/1.sock", True, "not a private directory of this user"),
        (tmp_path / ("x" * 120), False, r"too long: set socket.path to a shorter one"),
    ]:
        with pytest.raises(EnvironmentProblem, match=text), listening(path, registered=registered):
            pass


@pytest.mark.parametrize(("uid", "told"), [(os.geteuid(), True), (0, True), (65534, False)])
@pytest.mark.logs("on the control socket")
async def test_other_users_are_told_nothing_whatever_the_file_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, told: bool
) -> None:
    monkeypatch.setattr(http, "peer_uid", lambda getsockopt: uid)
    path = tmp_path / "run/1.sock"
    request = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = b""

    def work() -> bytes:
        try:
            return exchange(path, request)
        except (BrokenPipeError, ConnectionResetError):
            return b""

    answer = await served(path, work)
    assert answer[:12] == (b"HTTP/1.1 200" if told else b"")
    if not told:
        assert b"200" in await served(path, work, may_ask=http.anybody)


async def test_one_who_leaves_at_once_or_does_not_read_takes_no_more_than_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TRANSFER_LIMIT_S", 0.2)
    path = tmp_path / "run/1.sock"

    def work() -> dict[str, Any] | None:
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
        lazy = []
        for position in range(http.MAX_CONNECTIONS + 4):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(path))
            if position % 2:
                connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            lazy.append(connection)
        try:
            return ask(path, "GET", "/hello", limit_s=10)
        finally:
            for connection in lazy:
                connection.close()

    assert await served(path, work) == {"query": {}, "method": "GET"}


@pytest.mark.parametrize(
    ("environment", "uid", "expected"),
    [
        ({"XDG_RUNTIME_DIR": "/run/user/1000"}, 1000, "/run/user/1000/litereplica"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/litereplica"),
        ({"XDG_RUNTIME_DIR": "relative", "TMPDIR": "/scratch"}, 1000, "/scratch/litereplica-1000"),
        ({"RUNTIME_DIRECTORY": "/run/x:/run/litereplica/app", "TMPDIR": "/scratch"}, 1000, "/run/litereplica/app"),
        ({"RUNTIME_DIRECTORY": "/run/x", "TMPDIR": "/scratch"}, 1000, "/scratch/litereplica-1000"),
    ],
)
def test_sockets_of_a_user_are_in_one_place(environment: dict[str, str], uid: int, expected: str) -> None:
    assert own_directory(environment, uid=uid) == Path(expected)


@ROOT_ONLY
def test_root_sees_directories_of_users_and_none_that_somebody_planted(tmp_path: Path) -> None:
    good, planted, writable, linked = (tmp_path / f"litereplica-{uid}" for uid in (65533, 65532, 65531, 65530))
    for directory, owner in [(good, 65533), (planted, 65534), (writable, 65531)]:
        directory.mkdir(mode=0o755)
        os.chown(directory, owner, owner)
    writable.chmod(0o777)
    linked.symlink_to(good)
    found = {each.path: each.owner for each in registry({"TMPDIR": str(tmp_path)}, uid=0)}
    assert {path: owner for path, owner in found.items() if path.parent == tmp_path} == {good: 65533}


@ROOT_ONLY
async def test_root_asks_no_process_of_another_user_than_the_directorys_owner(tmp_path: Path) -> None:
    path = tmp_path / "run/1.sock"

    def work() -> None:
        assert ask(path, "GET", "/hello", owner=0) is not None
        with pytest.raises(EnvironmentProblem, match="another user than the owner of its directory"):
            ask(path, "GET", "/hello", owner=65533)

    await served(path, work)


def test_an_answer_that_does_not_come_in_time_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "1.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(EnvironmentProblem, match="does not answer in time"):
            ask(path, "GET", "/", limit_s=0.05)
