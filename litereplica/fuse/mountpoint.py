"""Mount points of this machine: what is mounted where, by whom it is used, and how it is taken away.

Reads /proc and calls `fusermount3`; knows nothing of what is mounted.
"""

from __future__ import annotations

import errno
import os
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from litereplica.errors import EnvironmentProblem, UsageError

FILE_SYSTEM_TYPE = "fuse.litereplica"
FUSE_DEVICE = Path("/dev/fuse")
FUSERMOUNT = "fusermount3"

ANSWER_LIMIT_S = 5.0
"""How long a daemon may take to answer a simple question: it needs nothing but its memory."""

_MAX_FDS = 1 << 16

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")
_UNSAFE = re.compile(r"[^A-Za-z0-9:/._@=&?%+~-]")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo. `device` is `major:minor`."""

    device: str
    path: str
    type: str
    source: str


@dataclass(frozen=True, slots=True)
class Client:
    """A process that uses a mount."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"


def mounts() -> list[Mount]:
    """All mounts that this process sees, oldest first."""
    found = []
    for line in _MOUNTINFO.read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        found.append(Mount(fields[2], _unescape(fields[4]), tail[0], _unescape(tail[1])))
    return found


def mount_at(path: Path) -> Mount | None:
    """The topmost mount whose root is exactly this absolute path. Asks the file system nothing."""
    return next((mount for mount in reversed(mounts()) if mount.path == str(path)), None)


def absolute(path: Path) -> Path:
    """An absolute path without links in its parents. Does not touch the last component, which may be dead."""
    return (
        Path(os.path.realpath(path.parent)) / path.name if path.name not in ("", "..") else Path(os.path.realpath(path))
    )


def prepare(path: Path) -> None:
    """Check that something can be mounted at `path`; take away what a killed daemon of ours left there.

    Raises `UsageError` or `EnvironmentProblem`.
    """
    _check_fuse()
    mount = mount_at(path)
    if mount is not None:
        if mount.type != FILE_SYSTEM_TYPE or not is_dead(path):
            raise UsageError(
                f"{path} is already a mount point ({mount.type}, {mount.source})",
                hint=f"choose another directory, or run 'litereplica umount {path}'",
            )
        unmount(path, lazy=True)
    try:
        entries = os.listdir(path)  # noqa: PTH208 - only whether there are any
    except FileNotFoundError:
        raise UsageError(f"mount point {path} does not exist", hint=f"create it: mkdir -p {path}") from None
    except NotADirectoryError:
        raise UsageError(f"mount point {path} is not a directory", hint="choose an empty directory") from None
    except PermissionError:
        raise UsageError(f"mount point {path} cannot be read", hint="choose a directory of yours") from None
    if entries:
        raise UsageError(f"mount point {path} is not empty", hint="choose an empty directory")
    if not os.access(path, os.W_OK):
        raise UsageError(f"mount point {path} is not writable for you", hint="choose a directory of yours")


def is_dead(path: Path) -> bool:
    """Is the daemon behind this mount gone? One that does not answer is not."""
    try:
        ask(lambda: os.stat(path) and b"")  # noqa: PTH116 - a Path method would hide nothing and say less
    except TimeoutError:
        return False
    except OSError as exc:
        return is_dead_error(exc)
    return False


def is_dead_error(error: OSError) -> bool:
    """Is this what the kernel answers for a daemon that is gone?"""
    return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def ask(question: Callable[[], bytes]) -> bytes:
    """The answer to a question that a daemon answers: in a child, since who waits for a stopped one cannot be stopped.

    Raises `TimeoutError` after `ANSWER_LIMIT_S`, or the `OSError` of the question. Must not be called when there are
    other threads.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            answer_end = os.dup2(write_end, 3)
            os.closerange(4, _MAX_FDS)
            os.closerange(0, 3)  # nobody who reads our output must wait for a child that cannot end
            os.write(answer_end, _outcome(question))
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:  # noqa: PTH123 - a descriptor
        if not select.select([pipe], [], [], ANSWER_LIMIT_S)[0]:
            os.kill(child, signal.SIGKILL)  # it ends when the daemon does, if not now
            raise TimeoutError(errno.ETIMEDOUT, "no answer")
        number, _, answer = pipe.read().partition(b" ")
    os.waitpid(child, 0)
    if int(number or errno.EIO):
        raise OSError(int(number), os.strerror(int(number)))
    return answer


def _outcome(question: Callable[[], bytes]) -> bytes:
    try:
        return b"0 " + question()
    except OSError as exc:
        return b"%d " % (exc.errno or errno.EIO)


def _check_fuse() -> None:
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise EnvironmentProblem(
            f"{FUSE_DEVICE} does not exist",
            hint="load the kernel module (modprobe fuse), or give the container the device",
        ) from None
    except OSError as exc:
        raise EnvironmentProblem(
            f"{FUSE_DEVICE} cannot be opened ({os.strerror(exc.errno or 0)})",
            hint="run as root, or make the device accessible (chmod 666, as distributions have it)",
        ) from exc
    if os.geteuid() != 0 and shutil.which(FUSERMOUNT) is None:
        raise EnvironmentProblem(f"{FUSERMOUNT} is not installed", hint="install the package fuse3")


def unmount(path: Path, *, lazy: bool) -> bool:
    """Take a mount away; False when it is in use. Lazy: at once, its users keep what they have open.

    Asks the daemon nothing, so it may be called while that is the caller itself. Raises `EnvironmentProblem`.
    """
    if shutil.which(FUSERMOUNT):
        command = [FUSERMOUNT, "-u", *(["-z"] if lazy else []), str(path)]
    else:
        command = ["umount", "-i", *(["-l"] if lazy else []), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return True
    if "busy" in done.stderr:
        return False
    raise EnvironmentProblem(f"cannot unmount {path}: {done.stderr.strip() or f'exit code {done.returncode}'}")


def clients(path: Path, *, besides: int) -> list[Client]:
    """Processes that have something below a mount open, mapped, or as their directory, as far as we may look.

    Goes by the paths that /proc shows, so that no file system is asked.
    """
    processes = [entry for entry in Path("/proc").iterdir() if entry.name.isdecimal() and int(entry.name) != besides]
    users = [Client(int(entry.name), _command(entry)) for entry in processes if _uses(entry, str(path))]
    return sorted(users, key=lambda client: client.pid)


def _uses(process: Path, path: str) -> bool:
    for link in _links(process):
        try:
            target = os.readlink(link)  # noqa: PTH115 - the text is wanted
        except OSError:
            continue
        if target == path or target.startswith(path + "/"):
            return True
    try:
        return f" {path}/" in (process / "maps").read_text(errors="replace")
    except OSError:
        return False


def _links(process: Path) -> Iterator[Path]:
    yield process / "cwd"
    yield process / "root"
    with suppress(OSError):
        yield from list((process / "fd").iterdir())


def _command(process: Path) -> str:
    try:
        return (process / "comm").read_text(errors="replace").strip() or "?"
    except OSError:
        return "?"


def option_value(text: str) -> str:
    """`text` as the value of a mount option: without anything that could begin another one."""
    return _UNSAFE.sub("_", text)


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
