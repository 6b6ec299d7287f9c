"""The sockets of daemons: where they are, how one is made and removed, and who may connect.

    own_directory   the directory in which this user's daemons make their sockets, `<pid>.sock`
    registry        the directories whose sockets a user may ask; for root those of all users
    listening       makes a socket and removes it afterwards

A directory of sockets belongs to one user, and nobody else can write to it. docs/design/control.md has the reasons.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from litereplica.errors import EnvironmentProblem

SUFFIX = ".sock"
ROOT_DIRECTORY = Path("/run/litereplica")
USERS_RUNTIME = Path("/run/user")

BACKLOG = 64
MAX_DIRECTORIES = 1000
"""Directories of sockets that root looks into; more users than that do not run daemons on one machine."""
MAX_SOCKETS = 1000
"""Sockets of one directory that are asked."""

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_CREDENTIALS = struct.Struct("3i")
"""The value of SO_PEERCRED: pid, uid and gid."""
_MAX_PATH_BYTES = 107
"""Maximum length of the path of a Unix socket."""
_NAME_BYTES = 20
"""Maximum length of the socket's temporary name in its directory."""


@dataclass(frozen=True, slots=True)
class SocketDirectory:
    """A directory of sockets, and the user (uid) it belongs to."""

    path: Path
    owner: int

    def sockets(self) -> list[Path]:
        """Its sockets, in the order of their names."""
        with suppress(OSError):
            return sorted(islice(self.path.glob(f"*{SUFFIX}"), MAX_SOCKETS))
        return []


def own_directory(environment: Mapping[str, str], *, uid: int) -> Path:
    """The directory in which the daemons of a user make their sockets."""
    if uid == 0:
        return ROOT_DIRECTORY
    for name in environment.get("RUNTIME_DIRECTORY", "").split(":"):
        if Path(name).is_relative_to(ROOT_DIRECTORY):
            return Path(name)
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return Path(runtime) / "litereplica"
    of_login = USERS_RUNTIME / str(uid)
    if os.access(of_login, os.W_OK | os.X_OK):
        return of_login / "litereplica"
    return Path(environment.get("TMPDIR") or "/tmp") / f"litereplica-{uid}"  # noqa: S108 - see `require_own`


def default_path(directory: Path) -> Path:
    """The path of this process's socket in a directory."""
    return directory / f"{os.getpid()}{SUFFIX}"


def registry(environment: Mapping[str, str], *, uid: int) -> list[SocketDirectory]:
    """The existing directories whose sockets a user may ask: their own ones, and those of all users for root.

    Raises `EnvironmentProblem` if another user has planted the user's own directory.
    """
    own = own_directory(environment, uid=uid)
    if own != ROOT_DIRECTORY:
        require_own(own)
    found = {own: _directory(own), ROOT_DIRECTORY: _directory(ROOT_DIRECTORY)}
    for path in _below(ROOT_DIRECTORY, "*"):
        found[path] = _directory(path)
    temporary = Path(environment.get("TMPDIR") or "/tmp")  # noqa: S108 - the owner is checked
    for path, name in [
        *((each, each.parent.name) for each in _below(USERS_RUNTIME, f"{uid or '*'}/litereplica")),
        *((each, each.name.partition("-")[2]) for each in _below(temporary, f"litereplica-{uid or '*'}")),
    ]:
        directory = _directory(path)
        found[path] = directory if directory is not None and str(directory.owner) == name else None
    return [each for each in found.values() if each is not None and uid in (0, each.owner)]


def _below(root: Path, pattern: str) -> list[Path]:
    with suppress(OSError):
        return sorted(islice(root.glob(pattern), MAX_DIRECTORIES))
    return []


def _directory(path: Path) -> SocketDirectory | None:
    """The directory at `path`; None if there is none, or if others can write to it."""
    try:
        found = path.lstat()
    except OSError:
        return None
    if not stat.S_ISDIR(found.st_mode) or found.st_mode & _OTHERS_WRITE:
        return None
    return SocketDirectory(path, found.st_uid)


@contextmanager
def listening(path: Path, *, registered: bool, mode: int = 0o600) -> Iterator[socket.socket]:
    """Listen on a socket at `path` during the block. `registered`: create its directory, and remove dead sockets in it.

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
            if registered:
                make_own(path.parent)
                for other in SocketDirectory(path.parent, os.geteuid()).sockets():
                    _remove_dead(other)
            _remove_dead(path)
            _bind(listener, path, mode)
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


def make_own(directory: Path) -> None:
    """Create a directory of sockets if it does not exist. Raises as `require_own`.

    That of root may be entered by all: the directories of services are in it.
    """
    mode = 0o755 if directory == ROOT_DIRECTORY else 0o700
    directory.mkdir(mode=mode, parents=True, exist_ok=True)
    require_own(directory)
    if directory == ROOT_DIRECTORY and stat.S_IMODE(directory.lstat().st_mode) == 0o700:
        directory.chmod(mode)  # as an earlier version made it


def require_own(directory: Path) -> None:
    """Raise `EnvironmentProblem` if a directory exists and is another user's, perhaps planted, or others can write."""
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE:
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
        except OSError:
            return


def _bind(listener: socket.socket, path: Path, mode: int) -> None:
    """Bind the socket under a temporary name, and link it to `path` once it listens.

    Otherwise another daemon could take it for dead in between, and remove it.
    """
    new = path.with_name(f".{os.getpid()}.new")
    new.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        listener.bind(str(new))
    finally:
        os.umask(before)
    try:
        new.chmod(mode)
        listener.listen(BACKLOG)
        path.hardlink_to(new)
    finally:
        new.unlink()


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def peer_uid(getsockopt: Callable[[int, int, int], bytes]) -> int:
    """The user id of the process at the other end of a Unix socket, according to the kernel; by its `getsockopt`."""
    _, uid, _ = _CREDENTIALS.unpack(getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)
