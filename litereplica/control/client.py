"""The client of the control sockets of daemons, ours and Litestream's: one request, blocking.

    ask          sends a request to one socket, and returns its JSON object
    ask_all      asks every daemon that this user may ask

Imports neither trio nor anything of the store, so that a command that only asks starts quickly. What a daemon of
another user answers is limited in time and size, and is not believed before the kernel says who answers.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import h11

from litereplica.control.sockets import peer_uid, registry
from litereplica.errors import ControlError, EnvironmentProblem
from litereplica.foreign_directory import parse_object

TIMEOUT_S = 30.0
"""Litestream's time limit of a request that names none."""
ANSWER_LIMIT_S = 5.0
"""For an answer that a daemon has at hand."""
MAX_ANSWER_BYTES = 64 << 20
"""More than the document of any writer: that of 10,000 databases has 5 MB."""
FOREIGN_LIMIT_S = 1.0
"""For all answers of the daemons of another user together."""
MAX_FOREIGN_BYTES = 16 << 20
"""Of one such answer."""

_READ_BYTES = 1 << 20
_TIMEVAL = struct.Struct("ll")


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon that answered: its socket, its user (uid), and the document of `GET /status`."""

    socket: Path
    owner: int
    status: dict[str, Any]


def ask(
    path: Path,
    method: str,
    target: str,
    fields: Mapping[str, object] | None = None,
    *,
    limit_s: float = ANSWER_LIMIT_S,
    max_bytes: int = MAX_ANSWER_BYTES,
    owner: int | None = None,
) -> dict[str, Any] | None:
    """Return the JSON object that the daemon at the socket `path` answers; None if no process listens there. Blocks.

    `fields` is the JSON object to send. With `owner`, a process of another user (uid) is asked nothing.

    Raises:
        ControlError: the daemon refuses; `status` is that of HTTP.
        EnvironmentProblem: there is no such answer within `limit_s` seconds and `max_bytes`.
    """
    deadline = time.monotonic() + limit_s
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            _connect(connection, path, limit_s)
            if owner is not None and peer_uid(connection.getsockopt) != owner:
                raise EnvironmentProblem(
                    f"another user than the owner of its directory answers at {path}", hint="remove that socket"
                )
            status, data = _exchange(connection, method, target, fields, deadline=deadline, max_bytes=max_bytes)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except TimeoutError:
        raise EnvironmentProblem(f"the daemon at {path} does not answer in time", hint="see its log") from None
    except OSError as exc:
        raise EnvironmentProblem(
            f"cannot ask the daemon at {path}: {exc.strerror}", hint="ask as the user that it runs as"
        ) from exc
    answer = parse_object(data)
    if answer is None or (status >= HTTPStatus.BAD_REQUEST and "error" not in answer):
        raise EnvironmentProblem(
            f"the answer from {path} is not that of litereplica", hint="name another socket with --socket"
        )
    if status >= HTTPStatus.BAD_REQUEST:
        raise ControlError(str(answer["error"]), status=status, hint=_text(answer.get("details")))
    return answer


def ask_all(environment: Mapping[str, str], *, target: str, warn: Callable[[str], None]) -> Iterator[Daemon]:
    """Yield every daemon that this user may ask, for root those of all users.

    Daemons that do not answer are left out; `warn` is told of those of this user. Raises `EnvironmentProblem` as
    `registry`.
    """
    uid = os.geteuid()
    for directory in registry(environment, uid=uid):
        is_own = directory.owner == uid
        deadline = time.monotonic() + FOREIGN_LIMIT_S
        for path in directory.sockets():
            left_s = ANSWER_LIMIT_S if is_own else deadline - time.monotonic()
            if left_s <= 0:
                break
            try:
                status = ask(
                    path, "GET", target, limit_s=left_s, owner=directory.owner,
                    max_bytes=MAX_ANSWER_BYTES if is_own else MAX_FOREIGN_BYTES,
                )  # fmt: skip
            except (EnvironmentProblem, ControlError) as exc:
                if is_own:
                    warn(str(exc))
                continue
            if status is not None:
                yield Daemon(path, directory.owner, status)


def _connect(connection: socket.socket, path: Path, limit_s: float) -> None:
    """Connect within `limit_s`, also if the backlog is full. Raises `OSError`, `TimeoutError`.

    Python's time limit makes the socket non-blocking, and then a full backlog is an error.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(limit_s), int(limit_s % 1 * 1e6)))
    try:
        connection.connect(str(path))
    except BlockingIOError:
        raise TimeoutError from None
    connection.settimeout(limit_s)


def _exchange(
    connection: socket.socket,
    method: str,
    target: str,
    fields: Mapping[str, object] | None,
    *,
    deadline: float,
    max_bytes: int,
) -> tuple[int, bytes]:
    """Send a request; return status and body. Raises `OSError`, `TimeoutError`."""
    body = b"" if fields is None else json.dumps(fields).encode()
    headers = [("Host", "localhost"), ("Connection", "close")]
    if fields is not None:
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    http = h11.Connection(h11.CLIENT)
    head = h11.Request(method=method, target=target, headers=headers)
    parts = [http.send(head), http.send(h11.Data(data=body)) if body else b"", http.send(h11.EndOfMessage())]
    connection.sendall(b"".join(part or b"" for part in parts))
    status, data = 0, bytearray()
    try:
        while True:
            event = http.next_event()
            match event:
                case h11.NEED_DATA:
                    left_s = deadline - time.monotonic()
                    if left_s <= 0:
                        raise TimeoutError
                    connection.settimeout(left_s)
                    http.receive_data(connection.recv(_READ_BYTES))
                case h11.Response():
                    status = event.status_code
                case h11.Data():
                    data += event.data
                    if len(data) > max_bytes:
                        return status, b""
                case h11.EndOfMessage() | h11.ConnectionClosed():
                    return status, bytes(data)
    except h11.RemoteProtocolError:
        return status, b""


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
