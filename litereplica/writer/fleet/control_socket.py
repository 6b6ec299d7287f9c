"""The control socket of a writer: a Unix socket that reports the writer's state as JSON.

    listening   creates the socket and removes it afterwards
    serve       writes one JSON document (`encode`) to each client, and closes the connection; nothing is read
    ask         the client, for `litereplica status`

Only the writer's own user and root get an answer: the directory and the socket have no permissions for others, and the
user id of each client is checked. A connection lasts `ANSWER_LIMIT_S` at most, and a few are served concurrently.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from litereplica.errors import EnvironmentProblem
from litereplica.file_access import make_directories
from litereplica.foreign_directory import parse_object
from litereplica.ltxstore.lease_record import Lease
from litereplica.times import format_time
from litereplica.writer.fleet.statistics import DatabaseStatistics, FleetStatistics

log = logging.getLogger(__name__)

ANSWER_LIMIT_S = 5.0
"""The document of 10,000 databases has 5 MB, and is written in a fraction of this time."""
MAX_ANSWER_BYTES = 64 << 20
"""More than the document of any writer."""
MAX_CONNECTIONS = 8
"""Connections served concurrently; more wait in the backlog."""
SUFFIX = ".sock"

_ROOT_DIRECTORY = Path("/run/litereplica")
_CREDENTIALS = struct.Struct("3i")
"""The value of SO_PEERCRED: pid, uid and gid."""
_MAX_PATH_BYTES = 107
"""Maximum length of the path of a Unix socket."""
_NAME_BYTES = 20
"""Maximum length of the socket's temporary name in its directory."""


def socket_directory(environment: Mapping[str, str], *, uid: int) -> Path:
    """The directory of the sockets of a user's writers."""
    if uid == 0:
        return _ROOT_DIRECTORY
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return Path(runtime) / "litereplica"
    return Path(environment.get("TMPDIR") or "/tmp") / f"litereplica-{uid}"  # noqa: S108 - see `make_private`


def default_path(directory: Path) -> Path:
    """The default path of this process's socket."""
    return directory / f"{os.getpid()}{SUFFIX}"


def encode(process: Mapping[str, object], statistics: FleetStatistics) -> bytes:
    """The JSON document: the fields of `process`, the databases, and the leases by URL."""
    document = {**process, "databases": [database_record(each) for each in statistics.databases]}
    document["leases"] = {url: lease_record(lease) for url, lease in statistics.leases.items()}
    return json.dumps(document).encode()


def database_record(database: DatabaseStatistics) -> dict[str, object]:
    """The JSON object of one database."""
    return {
        "db_path": str(database.path.absolute()),  # the client may have another working directory
        "url": database.url,
        "state": database.state.value,
        "txid": f"{database.txid:016x}",
        "behind_s": round(database.behind_s, 3),
        "unpublished_bytes": database.unpublished_bytes,
        "wal_frames": database.wal_frames,
        "files": database.files,
        "pages": database.pages,
        "bytes": database.bytes,
        "checkpoints": database.checkpoints,
        "error": database.error,
        "lease": None if database.lease is None else lease_record(database.lease),
    }


def lease_record(lease: Lease) -> dict[str, object]:
    """The JSON object of a lease."""
    return {"owner": lease.owner, "generation": lease.generation, "expires_at": format_time(lease.expires_ms)}


@contextmanager
def listening(path: Path, *, own_directory: bool) -> Iterator[socket.socket]:
    """Listen on a socket at `path` during the block, for `serve`. `own_directory`: create its directory, private.

    Raises:
        EnvironmentProblem: the socket cannot be created.
    """
    if max(len(os.fsencode(path)), len(os.fsencode(path.parent)) + _NAME_BYTES) > _MAX_PATH_BYTES:
        raise EnvironmentProblem(
            f"the path of the control socket {path} is too long", hint="set socket.path to a shorter one"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        try:
            if own_directory:
                make_private(path.parent)
                for other in path.parent.glob(f"*{SUFFIX}"):
                    _remove_dead(other)
            _remove_dead(path)
            _bind(listener, path)
            identity = _identity(path)
        except OSError as exc:
            raise EnvironmentProblem(
                f"cannot create the control socket {path}: {exc.strerror}",
                hint="set socket.path to another path, or write socket: {enabled: false}",
            ) from exc
        try:
            yield listener
        finally:
            with suppress(OSError):
                if _identity(path) == identity:
                    path.unlink()
    finally:
        listener.close()


def make_private(directory: Path) -> None:
    """Create a directory with mode 0700 if it does not exist. Raises `EnvironmentProblem` unless it is private."""
    make_directories(directory)
    require_private(directory)


def require_private(directory: Path) -> None:
    """Raise `EnvironmentProblem` if a directory exists and is not a private one of this user, perhaps a planted one."""
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise EnvironmentProblem(
            f"{directory} is not a private directory of this user", hint=f"remove it, or run 'chmod 700 {directory}'"
        )


def _remove_dead(path: Path) -> None:
    """Remove a socket that no process listens on. Anything else is kept, and the bind fails."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except BlockingIOError:
            return


def _bind(listener: socket.socket, path: Path) -> None:
    """Bind the socket under a temporary name, and link it to `path` once it listens.

    Otherwise another writer could take it for dead in between, and remove it.
    """
    new = path.with_name(f".{os.getpid()}.new")
    new.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        listener.bind(str(new))
    finally:
        os.umask(before)
    try:
        listener.listen(MAX_CONNECTIONS)
        path.hardlink_to(new)
    finally:
        new.unlink()


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


async def serve(listener: socket.socket, answer: Callable[[], bytes]) -> None:
    """Send each client the result of `answer()`, until cancelled."""
    accepting = trio.socket.from_stdlib_socket(listener.dup())
    limiter = trio.CapacityLimiter(MAX_CONNECTIONS)
    async with trio.open_nursery() as nursery:
        with accepting:
            while True:
                async with limiter:
                    pass  # wait until another connection may be served
                try:
                    connection, _ = await accepting.accept()
                except OSError as exc:
                    log.warning("cannot accept connections on the control socket: %s", exc.strerror)
                    await trio.sleep(ANSWER_LIMIT_S)
                    continue
                nursery.start_soon(_answer, connection, limiter, answer)


async def _answer(
    connection: trio.socket.SocketType, limiter: trio.CapacityLimiter, answer: Callable[[], bytes]
) -> None:
    with connection:
        async with limiter:
            uid = _peer_uid(connection)
            if uid not in (0, os.geteuid()):
                log.warning("refused user %d on the control socket", uid)
                return
            with trio.move_on_after(ANSWER_LIMIT_S), suppress(trio.BrokenResourceError):
                await trio.SocketStream(connection).send_all(answer())


def _peer_uid(connection: trio.socket.SocketType) -> int:
    """The user id of the client, according to the kernel."""
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


def ask(path: Path) -> dict[str, Any] | None:
    """Return the document of the writer at a socket; None if no process listens. Blocks.

    Raises:
        EnvironmentProblem: the answer is no such document, or there is none within `ANSWER_LIMIT_S`.
    """
    data = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_LIMIT_S)
        try:
            connection.connect(str(path))
            while chunk := connection.recv(1 << 20):
                data += chunk
                if len(data) > MAX_ANSWER_BYTES:
                    break
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as exc:
            reason = exc.strerror or "it does not answer"
            raise EnvironmentProblem(
                f"cannot ask the writer at {path}: {reason}", hint="ask as the user that it runs as"
            ) from exc
    document = parse_object(data)
    if document is None:
        raise EnvironmentProblem(
            f"the answer from {path} is not that of a writer", hint="ask as the user that it runs as"
        )
    return document
