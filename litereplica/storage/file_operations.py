"""System calls of the `file` backend: opening below a directory, complete and durable files, etags, the lock.

All functions block and run in threads. They raise `OSError`, which `translated` turns into the errors of the
storage contract. Names are single components, relative to the descriptor of an open directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import trio

from litereplica.errors import AccessDenied, NotFound, StorageError, TransientStorageError
from litereplica.file_access import FileAccess
from litereplica.storage.base import Body

CONTENT_ETAG_BYTES = 4096
"""Larger than any lease; reading and digesting this much costs some 10 µs."""
CHUNK_BYTES = 8 << 20
"""Bytes copied at a time; cancellation is checked in between."""
LOCK_TIMEOUT_S = 10.0
"""The lock is held for microseconds: a process that holds it for longer is suspended, and the caller may try again."""
LOCK_POLL_S = 0.001
STALE_TEMPORARY_S = 24 * 3600.0
"""A temporary file of this age belongs to a process that was killed: no upload takes a day."""

RESERVED_PREFIX = ".litereplica-"
TEMPORARY_PREFIX = RESERVED_PREFIX + "tmp-"
LOCK_NAME = RESERVED_PREFIX + "lock"

_NO_FOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | _NO_FOLLOW  # non-blocking: a FIFO in a file's place must not hang us
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW

_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
_PASSING = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.ESTALE, errno.ETIMEDOUT}
)


@contextmanager
def open_directory(root: Path, components: list[str], *, create: FileAccess | None = None) -> Iterator[int]:
    """A descriptor of a directory below `root`, reached without following a symbolic link below it.

    Directories that are missing are made if `create` says with which access.
    """
    fd = os.open(root, _DIRECTORY)
    try:
        for component in components:
            if create is not None:
                _make_directory(component, create, parent=fd)
            child = open_child(component, parent=fd)
            os.close(fd)
            fd = child
        yield fd
    finally:
        os.close(fd)


def open_child(name: str, *, parent: int) -> int:
    """A descriptor of a directory in a directory; the caller closes it."""
    return os.open(name, _DIRECTORY | _NO_FOLLOW, dir_fd=parent)


@contextmanager
def open_file(name: str, *, parent: int) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file for reading; anything else counts as missing. Yields descriptor and status."""
    fd = os.open(name, _READ, dir_fd=parent)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a regular file")
        yield fd, status
    finally:
        os.close(fd)


def read_exactly(fd: int, length: int, offset: int) -> bytes:
    """Read `length` bytes at `offset`. Raises `OSError` if the file has become too short."""
    data = os.pread(fd, length, offset)
    if len(data) == length:
        return data
    parts = [data]
    while (missing := length - sum(map(len, parts))) > 0:
        parts.append(os.pread(fd, missing, offset + length - missing))
        if not parts[-1]:
            raise OSError(errno.ESTALE, "the file became shorter while it was read")
    return b"".join(parts)


def etag_of(fd: int, status: os.stat_result) -> str:
    """The etag of an open file: a digest or its identity, by its size; `file.py` says why."""
    if status.st_size <= CONTENT_ETAG_BYTES:
        digest = hashlib.blake2b(read_exactly(fd, status.st_size, 0), digest_size=16)
        return f'"{digest.hexdigest()}"'
    return f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"'


def make_root(root: Path, access: FileAccess) -> None:
    """Create `root` and its parents; each new name is made durable."""
    missing = []
    while not root.is_dir():
        missing.append(root.name)
        root = root.parent
    if missing:
        with open_directory(root, missing[::-1], create=access):
            pass


@contextmanager
def temporary_file(
    body: Body, access: FileAccess, *, parent: int, modified_ms: int | None
) -> Iterator[tuple[str, str]]:
    """Create a complete, durable file under a temporary name. Yields (name, etag); removes the name afterwards."""
    name = TEMPORARY_PREFIX + secrets.token_hex(8)
    fd = os.open(name, _CREATE, access.mode & os.fstat(parent).st_mode, dir_fd=parent)
    try:
        try:
            _grant(access, fd, parent=parent)
            _write_body(fd, body)
            # The clock has a higher resolution than the kernel's file times.
            modified_ns = time.time_ns() if modified_ms is None else modified_ms * 1_000_000
            os.utime(fd, ns=(modified_ns, modified_ns))
            os.fsync(fd)
            etag = etag_of(fd, os.fstat(fd))
        finally:
            os.close(fd)
        yield name, etag
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)


def remove_stale(parent: int) -> None:
    """Remove temporary files that killed processes left in a directory."""
    with os.scandir(parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(TEMPORARY_PREFIX)]
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            age_s = time.time() - os.stat(name, dir_fd=parent, follow_symlinks=False).st_ctime
            if age_s > STALE_TEMPORARY_S:
                os.unlink(name, dir_fd=parent)


@contextmanager
def exclusive_lock(root: Path) -> Iterator[None]:
    """Hold the lock under which names below `root` are changed."""
    with open_directory(root, []) as directory:
        fd = _open_lock(directory)
    try:
        _flock(fd, deadline=time.monotonic() + LOCK_TIMEOUT_S)
        yield
    finally:
        os.close(fd)


def translated(exc: OSError, key: str, url: str, *, reading: bool) -> StorageError:
    """The error of the storage contract for a system call that failed on `key`."""
    reason = exc.strerror or str(exc)
    what = f"{key or 'the directory'} in {url}"
    if exc.errno in _MISSING and reading:
        return NotFound(f"{what} does not exist", key=key)
    message = f"cannot {'read' if reading else 'write'} {what}: {reason}"
    if exc.errno in _DENIED:
        right = "read" if reading else "write"
        return AccessDenied(message, key=key, hint=f"let this user {right} the directory and its files")
    if exc.errno in _FULL:
        return StorageError(message, key=key, hint="free space there, or raise the quota")
    if exc.errno in _PASSING:
        return TransientStorageError(message, key=key, hint="see whether the file system answers")
    if exc.errno == errno.ELOOP:
        return StorageError(message, key=key, hint="put the file itself there: symbolic links are not followed")
    return StorageError(message, key=key, hint="check the directory and its file system")


def _make_directory(name: str, access: FileAccess, *, parent: int) -> None:
    try:
        os.mkdir(name, access.directory_mode & os.fstat(parent).st_mode, dir_fd=parent)
    except FileExistsError:
        return
    fd = open_child(name, parent=parent)
    try:
        _grant(access, fd, parent=parent)
    finally:
        os.close(fd)
    os.fsync(parent)


def _grant(access: FileAccess, fd: int, *, parent: int) -> None:
    """Give a new file or directory its access; its group is that of its directory if no other is known.

    The set-group-ID bit of a directory says that all below it is to have its group.
    """
    place = os.fstat(parent)
    if access.gid is None and not access.is_wanted:
        access = replace(access, gid=place.st_gid)
    access.grant(fd, keep_group=bool(place.st_mode & stat.S_ISGID))


def _open_lock(directory: int) -> int:
    """The lock, for those who may write to the directory: whoever can read it could keep it locked."""
    try:
        return os.open(LOCK_NAME, os.O_RDWR | _NO_FOLLOW, dir_fd=directory)
    except FileNotFoundError:
        writers = os.fstat(directory).st_mode & 0o022
    try:
        fd = os.open(LOCK_NAME, _CREATE, 0o600, dir_fd=directory)
    except FileExistsError:
        return os.open(LOCK_NAME, os.O_RDWR | _NO_FOLLOW, dir_fd=directory)
    os.fchmod(fd, 0o600 | writers | writers << 1)
    return fd


def _write_body(fd: int, body: Body) -> None:
    if isinstance(body, bytes):
        unwritten = memoryview(body)
        while unwritten:
            unwritten = unwritten[os.write(fd, unwritten[:CHUNK_BYTES]) :]
            trio.from_thread.check_cancelled()
        return
    with body.open("rb") as source:
        while os.sendfile(fd, source.fileno(), None, CHUNK_BYTES):
            trio.from_thread.check_cancelled()


def _flock(fd: int, *, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise OSError(errno.ENOLCK, f"another process keeps {LOCK_NAME} locked") from None
            time.sleep(LOCK_POLL_S)
