"""Mount points of this machine: what is mounted where, by whom it is used, and how it is taken away.

Reads /proc and calls `fusermount3`; knows nothing of what is mounted. Its records are named tuples: commands that run
often import this module, and a frozen dataclass takes eight times as long to make.
"""

from __future__ import annotations

import errno
import os
import re
import select
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from litereplica.errors import EnvironmentProblem, UsageError

FILE_SYSTEM_TYPE = "fuse.litereplica"
FUSE_DEVICE = Path("/dev/fuse")
FUSERMOUNT = "fusermount3"

ANSWER_LIMIT_S = 5.0
"""How long a daemon may take to answer a simple question: it needs nothing but its memory."""

_MAX_FDS = 1 << 16
_MOST_LINKS = 40
_ANYBODY_WRITES = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")
_UNSAFE = re.compile(r"[^A-Za-z0-9:/._@=&?%+~-]")
_LAYER_OPTIONS = ("lowerdir", "lowerdir+", "upperdir")


class Owner(NamedTuple):
    """A user and a group: who mounted something, and whom its files belong to."""

    uid: int
    gid: int


class Mount(NamedTuple):
    """A line of mountinfo.

    `device` is `major:minor`, `options` are those of the file system, `parent` the identity of the mount that it is on,
    and `peers` and `masters` are the numbers of the groups from which it receives mounts and unmounts.
    """

    identity: int
    parent: int
    device: str
    path: str
    type: str
    source: str
    options: str
    peers: frozenset[str]
    masters: frozenset[str]

    @property
    def owner(self) -> Owner | None:
        """The user that mounted it, and their group, for FUSE; None if the options do not say."""
        options = dict(option.partition("=")[::2] for option in self.options.split(","))
        uid, gid = options.get("user_id", ""), options.get("group_id", "")
        return Owner(int(uid), int(gid)) if uid.isdecimal() and gid.isdecimal() else None


class Client(NamedTuple):
    """A process that uses a mount."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"


class Copy(NamedTuple):
    """A further mount of a file system: a bind mount, or one in the mount namespace of process `pid`."""

    path: str
    pid: int | None

    def __str__(self) -> str:
        return self.path if self.pid is None else f"{self.path} as process {self.pid} sees it"


def mounts(table: Path = _MOUNTINFO) -> list[Mount]:
    """All mounts in a table, by default of those that this process sees, oldest first. Raises `OSError`."""
    found = []
    for line in table.read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        groups = [field.partition(":") for field in fields[6:]]
        peers, masters = (frozenset(number for kind, _, number in groups if kind == of) for of in ("shared", "master"))
        path, source, options = _unescape(fields[4]), _unescape(tail[1]), _unescape(tail[2])
        found.append(Mount(int(fields[0]), int(fields[1]), fields[2], path, tail[0], source, options, peers, masters))
    return found


def copies(mount: Mount) -> list[Copy]:
    """The mounts of the same file system that stay when `mount` is taken away, as far as we may look.

    Containers and services with a mount namespace of their own have copies of what was mounted when they started. In
    most the unmount takes place too, since their mounts are slaves of ours; those are not among the result.
    """
    ours = mounts()
    found = [Copy(each.path, None) for each in ours if each.device == mount.device and each.identity != mount.identity]
    on = next((each.peers for each in ours if each.identity == mount.parent), frozenset[str]())
    seen = {_namespace(Path("/proc/self"))}
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or (namespace := _namespace(process)) is None or namespace in seen:
            continue
        seen.add(namespace)
        with suppress(OSError):
            theirs = mounts(process / "mountinfo")
            follow = {each.identity for each in theirs if on & (each.peers | each.masters)}
            here = [each for each in theirs if each.device == mount.device]
            stay = [each for each in here if each.path != mount.path or each.parent not in follow]
            found.extend(Copy(each.path, int(process.name)) for each in stay)
    return found


def _namespace(process: Path) -> str | None:
    try:
        return os.readlink(process / "ns/mnt")  # noqa: PTH115 - the text is wanted
    except OSError:
        return None


def stacked_on(path: Path) -> list[Mount]:
    """The mounts of other file systems that take their files from below this absolute path, such as overlayfs."""
    return [mount for mount in mounts() if any(_is_below(each, str(path)) for each in _sources(mount))]


def _sources(mount: Mount) -> list[str]:
    """Directories of this machine that a file system takes its files from, as far as its mount options tell."""
    found = mount.source.split(":") if mount.source.startswith("/") else []
    for option in mount.options.split(","):
        name, _, value = option.partition("=")
        if name in _LAYER_OPTIONS:
            found += value.split(":")
    return found


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root + "/")


def mount_at(path: Path) -> Mount | None:
    """The topmost mount whose root is exactly this absolute path. Asks the file system nothing."""
    return next((mount for mount in reversed(mounts()) if mount.path == str(path)), None)


def mount_holding(path: Path) -> Mount | None:
    """The topmost mount that this absolute path is on, its root or below. Asks the file system nothing."""
    holding = [mount for mount in reversed(mounts()) if mount.path == "/" or _is_below(str(path), mount.path)]
    return max(holding, key=lambda mount: len(mount.path), default=None)


def absolute(path: Path) -> Path:
    """An absolute path without links. Does not touch what it leads to, which may be dead.

    Raises `UsageError` for a link that another user made: the directory behind it loses its write permission.
    """
    for _ in range(_MOST_LINKS):
        if path.name in ("", ".."):
            return Path(os.path.realpath(path))
        path = Path(os.path.realpath(path.parent)) / path.name
        try:
            target = os.readlink(path)  # noqa: PTH115 - a mount of a stopped daemon would hang stat()
        except OSError:
            return path
        if os.lstat(path).st_uid not in (0, os.geteuid()):
            raise UsageError(f"{path} is a symbolic link that another user made", hint="name the directory itself")
        path = path.parent / target
    raise UsageError(f"{path} leads through too many symbolic links", hint="name the directory itself")


def prepare(path: Path) -> None:
    """Check that something can be mounted at `path`; take away what a killed daemon of ours left there.

    Raises `UsageError` or `EnvironmentProblem`.
    """
    _check_fuse()
    mount = mount_at(path)
    if mount is not None and not take_away_dead(path):
        raise UsageError(
            f"{path} is already a mount point ({mount.type}, {mount.source})",
            hint=f"choose another directory, or run 'litereplica umount {path}'",
        )
    try:
        entries = os.listdir(path)  # noqa: PTH208 - only whether there are any
    except FileNotFoundError:
        raise UsageError(f"mount point {path} does not exist", hint=f"create it: mkdir -p {path}") from None
    except NotADirectoryError:
        raise UsageError(f"mount point {path} is not a directory", hint="choose an empty directory") from None
    except PermissionError:
        raise UsageError(f"mount point {path} cannot be read", hint="choose a directory of yours") from None
    if entries:
        raise UsageError(
            f"mount point {path} is not empty: it has {entries[0]!r}",
            hint="move away what was written while nothing was mounted, or choose an empty directory;"
            f" 'chattr +i {path}' keeps even root from writing there",
        )
    if not os.access(path, os.W_OK):
        with suppress(OSError):
            path.chmod(path.stat().st_mode | stat.S_IWUSR)  # `forbid_writing` took it away
    if not os.access(path, os.W_OK):
        raise UsageError(f"mount point {path} is not writable for you", hint="choose a directory of yours")


def take_away_dead(path: Path) -> bool:
    """Unmount what a killed daemon of ours left at `path`. Returns False if there is no such mount."""
    mount = mount_at(path)
    if mount is None or mount.type != FILE_SYSTEM_TYPE or not is_dead(mount):
        return False
    unmount(path, lazy=True)
    return True


def open_below(path: Path) -> int:
    """A descriptor of the directory at `path`, for `forbid_writing` once something is mounted over it."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def forbid_writing(directory: int) -> None:
    """Close the descriptor of a directory, and let nobody write there if it is ours.

    A client that opens the database while nothing is mounted then gets an error, and does not make an empty one.
    """
    with suppress(OSError):
        os.fchmod(directory, stat.S_IMODE(os.fstat(directory).st_mode) & ~_ANYBODY_WRITES)
    os.close(directory)


def is_dead(mount: Mount) -> bool:
    """True if the daemon behind this mount is gone; False for one that does not answer.

    Attributes and names may be in the kernel's cache; `statvfs` never is.
    """
    try:
        ask(lambda: str(os.statvfs(mount.path).f_bsize).encode(), owner=mount.owner)
    except TimeoutError:
        return False
    except OSError as exc:
        return is_dead_error(exc)
    return False


def is_dead_error(error: OSError) -> bool:
    """True if this is what the kernel answers for a daemon that has ended."""
    return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def ask(question: Callable[[], bytes], *, owner: Owner | None) -> bytes:
    """Return the answer of a daemon. It is asked in a child process: a wait for a stopped daemon cannot be interrupted.

    Root asks as the mount's `owner`: FUSE does not let root into the mounts of others.

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
            os.write(answer_end, _outcome(question, owner))
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:  # noqa: PTH123 - a descriptor
        if not select.select([pipe], [], [], ANSWER_LIMIT_S)[0]:
            os.kill(child, signal.SIGKILL)  # it ends when the daemon does, if not now
            raise TimeoutError(errno.ETIMEDOUT, "no answer")
        number, _, answer = pipe.read().partition(b" ")
    os.waitpid(child, 0)
    if (code := int(number or errno.EIO)) != 0:
        raise OSError(code, os.strerror(code))
    return answer


def _become(owner: Owner) -> None:
    """Become another user, as root. A unit may have taken from root the capabilities that this needs."""
    if os.geteuid() == 0 and (os.getresuid(), os.getresgid()) != ((owner.uid,) * 3, (owner.gid,) * 3):
        os.setgroups([])
        os.setresgid(owner.gid, owner.gid, owner.gid)
        os.setresuid(owner.uid, owner.uid, owner.uid)


def _outcome(question: Callable[[], bytes], owner: Owner | None) -> bytes:
    try:
        if owner is not None:
            _become(owner)
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
    users = [client(int(entry.name)) for entry in processes if _uses(entry, str(path))]
    return sorted(users, key=lambda client: client.pid)


def client(pid: int) -> Client:
    """The process with this pid, which may have ended."""
    return Client(pid, _command(Path("/proc") / str(pid)))


def _uses(process: Path, path: str) -> bool:
    for link in _links(process):
        try:
            target = os.readlink(link)  # noqa: PTH115 - the text is wanted
        except OSError:
            continue
        if _is_below(target, path):
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
