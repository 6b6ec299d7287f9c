"""What a request is answered when something fails: an errno, and one line in the log, but no exception for pyfuse3."""

from __future__ import annotations

import errno
import logging
import os

import pyfuse3
import pytest
import trio
import trio.testing

from litereplica.errors import (
    AccessDenied,
    DamagedFile,
    LiteReplicaError,
    ReplicaError,
    StorageError,
    TransientStorageError,
)
from litereplica.fuse.mountpoint import Owner
from litereplica.fuse.nodes import Attributes, Directory, GeneratedFile, InodeTable, Node
from litereplica.fuse.operations import Operations

LIMIT_S = 15.0
READ_ONLY = pyfuse3.FlagT(os.O_RDONLY)


class FailingFile(Node):
    """A file whose reads fail with `error`."""

    error: Exception = OSError(errno.ENOSPC, "no space")

    def attributes(self) -> Attributes:
        return Attributes(size=4096)

    async def read(self, offset: int, size: int) -> bytes:
        raise self.error


class SilentFile(Node):
    """A file for which nothing is ever answered."""

    async def lookup(self, name: bytes) -> Node | None:
        await trio.sleep_forever()
        raise AssertionError

    async def open(self, *, own: bool, uid: int) -> None:
        await trio.sleep_forever()

    async def read(self, offset: int, size: int) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async def entries(self) -> list[tuple[bytes, Node]]:
        await trio.sleep_forever()
        raise AssertionError


class Files:
    """The nodes of a mount whose reads fail."""

    def __init__(self) -> None:
        self.inodes = InodeTable()
        root = self.inodes.allocate()
        self.database, self.shm = (self.inodes.add(FailingFile(self.inodes.allocate())) for _ in range(2))
        self.pos, self.status = (
            self.inodes.add(GeneratedFile(self.inodes.allocate(), lambda: b"0123456789", waits_until_ready=waits))
            for waits in (True, False)
        )
        self.inodes.add(Directory(root, {b"app.db": self.database}, hidden={b".litereplica": self.status}))

    def operations(self) -> Operations:
        return Operations(self.inodes, Owner(0, 0), total_size=lambda: 4096, limit_s=LIMIT_S)


class Context:
    """A request of another process."""

    pid = 1
    uid = gid = umask = 0


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def operations(files: Files) -> Operations:
    operations = files.operations()
    operations.open_to_others()
    return operations


async def opened(operations: Operations, node: Node) -> pyfuse3.FileHandleT:
    info = await operations.open(pyfuse3.InodeT(node.inode), READ_ONLY, Context())  # type: ignore[arg-type]
    return info.fh


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (DamagedFile("0/1-1.ltx", "checksum is wrong"), errno.EIO),
        (TransientStorageError("timeout"), errno.ETIMEDOUT),
        (StorageError("refused"), errno.EREMOTEIO),
        (ReplicaError("page 3 is in no file"), errno.EIO),
        (AccessDenied("wrong credentials"), errno.EACCES),
        (OSError(errno.ENOSPC, "no space"), errno.ENOSPC),
        (OSError("without a number"), errno.EIO),
        (KeyError("a bug"), errno.EIO),
        (RecursionError(), errno.EIO),
    ],
)
async def test_a_read_that_fails_is_answered_with_an_errno_and_logged_once(
    error: Exception, number: int, files: Files, operations: Operations, caplog: pytest.LogCaptureFixture
) -> None:
    files.database.error = error
    handle = await opened(operations, files.database)
    with pytest.raises(pyfuse3.FUSEError) as answered:
        await operations.read(handle, 0, 10)
    assert answered.value.errno == number
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    is_ours = isinstance(error, LiteReplicaError | OSError)
    assert (record.exc_info is None) is is_ours, "a traceback is for what was not foreseen"


@pytest.mark.logs("not answered within 15 s")
@pytest.mark.parametrize("request_name", ["open", "lookup", "opendir"])
async def test_no_request_waits_without_a_limit(
    request_name: str, files: Files, operations: Operations, autojump_clock: trio.testing.MockClock
) -> None:
    silent = files.inodes.add(SilentFile(files.inodes.allocate()))
    arguments = {"open": (READ_ONLY, Context()), "lookup": (b"name", Context()), "opendir": (Context(),)}[request_name]
    with pytest.raises(pyfuse3.FUSEError) as answered:
        await getattr(operations, request_name)(pyfuse3.InodeT(silent.inode), *arguments)
    assert answered.value.errno == errno.ETIMEDOUT
    assert trio.current_time() == pytest.approx(LIMIT_S)


@pytest.mark.logs("not answered within 15 s")
async def test_an_open_does_not_wait_without_a_limit_for_a_mount_that_is_not_ready(
    files: Files, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(pyfuse3.FUSEError) as answered:
        await opened(files.operations(), files.database)
    assert answered.value.errno == errno.ETIMEDOUT


@pytest.mark.logs("read failed")
async def test_a_handle_that_was_never_opened_is_an_error_and_no_more(operations: Operations) -> None:
    with pytest.raises(pyfuse3.FUSEError) as answered:
        await operations.read(pyfuse3.FileHandleT(99), 0, 10)
    assert answered.value.errno == errno.EIO


async def test_generated_files_are_read_as_they_were_when_opened(files: Files, operations: Operations) -> None:
    handle = await opened(operations, files.pos)
    assert await operations.read(handle, 0, 4) == b"0123"
    assert await operations.read(handle, 8, 100) == b"89"
    assert await operations.read(handle, 50, 100) == b""


async def test_whoever_opens_a_file_too_early_waits_until_the_mount_is_ready(files: Files) -> None:
    operations = files.operations()
    handles: list[pyfuse3.FileHandleT] = []

    async def open_database() -> None:
        handles.append(await opened(operations, files.database))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_database)
        await trio.testing.wait_all_tasks_blocked()
        assert handles == []
        assert await opened(operations, files.status), "who asks how it goes need not wait"
        operations.open_to_others()
    assert len(handles) == 1


async def test_the_last_client_to_leave_is_noticed(files: Files, operations: Operations) -> None:
    first, second = await opened(operations, files.database), await opened(operations, files.shm)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(operations.wait_until_unused)
        await operations.release(first)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        await operations.release(second)
    assert operations.client_handles == 0


async def test_every_request_that_would_change_a_file_is_refused(files: Files, operations: Operations) -> None:
    for name in (
        *("setattr", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link"),
        *("write", "setxattr", "removexattr", "create"),
    ):
        with pytest.raises(pyfuse3.FUSEError) as refused:
            await getattr(operations, name)(files.database.inode, b"name", Context())
        assert refused.value.errno == errno.EROFS
