"""The control socket of a writer: a Unix socket on which it tells what it is and does.

Whoever connects gets one JSON document and the end of the stream; nothing is read. The socket lies in a directory that
is the user's alone, is made without rights for anybody else, and answers its own user and root only, whatever the
file system says. A connection takes `ANSWER_LIMIT_S` at most, and a few are served at once.
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
from litereplica.ltxstore.lease import Lease
from litereplica.times import format_time
from litereplica.writer.fleet.statistics import DatabaseStatistics, FleetStatistics

log = logging.getLogger(__name__)

ANSWER_LIMIT_S = 5.0
"""A document of 10,000 databases is 5 MB, and written in a fraction of it."""
MAX_ANSWER_BYTES = 64 << 20
"""More than any writer has to tell."""
MAX_CONNECTIONS = 8
"""At once; more wait in the backlog."""
SUFFIX = ".sock"

_ROOT_DIRECTORY = Path("/run/litereplica")
_CREDENTIALS = struct.Struct("3i")
"""Of SO_PEERCRED: process, user and group."""
_MAX_PATH_BYTES = 107
"""What an address of a Unix socket holds."""
_NAME_BYTES = 20
"""Of the name in the directory, while it is made."""


def socket_directory(environment: Mapping[str, str], *, uid: int) -> Path:
    """Where the sockets of a user's writers are."""
    if uid == 0:
        return _ROOT_DIRECTORY
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return Path(runtime) / "litereplica"
    return Path(environment.get("TMPDIR") or "/tmp") / f"litereplica-{uid}"  # noqa: S108 - made private, or refused


def default_path(directory: Path) -> Path:
    """The socket of this process."""
    return directory / f"{os.getpid()}{SUFFIX}"


def encode(process: Mapping[str, object], statistics: FleetStatistics) -> bytes:
    """The document: what is known of the process, and its databases."""
    document = {**process, "databases": [database_record(each) for each in statistics.databases]}
    document["leases"] = {url: lease_record(lease) for url, lease in statistics.leases.items()}
    return json.dumps(document).encode()


def database_record(database: DatabaseStatistics) -> dict[str, object]:
    """One database as JSON has it."""
    return {
        "db_path": str(database.path.absolute()),  # who asks may be elsewhere
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
    """A lease as JSON has it."""
    return {"owner": lease.owner, "generation": lease.generation, "expires_at": format_time(lease.expires_ms)}


@contextmanager
def listening(path: Path, *, own_directory: bool) -> Iterator[socket.socket]:
    """A socket at `path` while the block runs, for `serve`. With `own_directory` its directory is made, private.

    Raises `EnvironmentProblem` when it cannot be made there.
    """
    if max(len(os.fsencode(path)), len(os.fsencode(path.parent)) + _NAME_BYTES) > _MAX_PATH_BYTES:
        raise EnvironmentProblem(
            f"the path of the control socket {path} is too long", hint="name a shorter one as socket.path"
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
                f"cannot make the control socket {path}: {exc.strerror}",
                hint="name another as socket.path, or write socket: {enabled: false}",
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
    """A directory that is ours and nobody else may enter; made unless it is there. Raises `EnvironmentProblem`."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise EnvironmentProblem(
            f"{directory} is not a directory of this user alone", hint=f"remove it, or run 'chmod 700 {directory}'"
        )


def _remove_dead(path: Path) -> None:
    """A socket that nobody listens on any more makes room; anything else stays, and the bind fails."""
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
    """It gets its name when it listens: one that refuses is taken for dead."""
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
    """Give whoever connects the answer of that moment, until cancelled."""
    accepting = trio.socket.from_stdlib_socket(listener.dup())
    limiter = trio.CapacityLimiter(MAX_CONNECTIONS)
    async with trio.open_nursery() as nursery:
        with accepting:
            while True:
                async with limiter:
                    pass  # room for one more
                try:
                    connection, _ = await accepting.accept()
                except OSError as exc:
                    log.warning("the control socket does not accept: %s", exc.strerror)
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
                log.warning("user %d asked on the control socket, and was refused", uid)
                return
            with trio.move_on_after(ANSWER_LIMIT_S), suppress(trio.BrokenResourceError):
                await trio.SocketStream(connection).send_all(answer())


def _peer_uid(connection: trio.socket.SocketType) -> int:
    """The user that connected, as the kernel knows it."""
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


def ask(path: Path) -> dict[str, Any] | None:
    """What the writer at a socket tells; None when there is none any more. Blocks for `ANSWER_LIMIT_S` at most.

    Raises `EnvironmentProblem` when something is there that does not answer so.
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
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise EnvironmentProblem(
            f"what listens at {path} told nothing that a writer tells", hint="ask as the user that it runs as"
        )
    return document
