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
from litereplica.fuse.nodes import Inode, Owner, file_names
from litereplica.fuse.operations import Operations

READ_ONLY = pyfuse3.FlagT(os.O_RDONLY)


class Files:
    """A file system whose reads fail with `error`."""

    names = file_names("app.db")
    mtime_ns = 0
    error: Exception = OSError(errno.ENOSPC, "no space")

    def size(self, inode: Inode) -> int:
        return 4096

    def check_open(self, inode: Inode) -> None:
        pass

    async def read(self, inode: Inode, offset: int, size: int) -> bytes:
        raise self.error

    def generate(self, inode: Inode) -> bytes:
        return b"0123456789"


class Context:
    """A request of another process."""

    pid = 1
    uid = gid = umask = 0


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def operations(files: Files) -> Operations:
    operations = Operations(files, Owner(0, 0))
    operations.open_to_others()
    return operations


async def opened(operations: Operations, inode: Inode = Inode.DATABASE) -> pyfuse3.FileHandleT:
    info = await operations.open(pyfuse3.InodeT(inode), READ_ONLY, Context())  # type: ignore[arg-type]
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
    files.error = error
    handle = await opened(operations)
    with pytest.raises(pyfuse3.FUSEError) as answered:
        await operations.read(handle, 0, 10)
    assert answered.value.errno == number
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    is_ours = isinstance(error, LiteReplicaError | OSError)
    assert (record.exc_info is None) is is_ours, "a traceback is for what was not foreseen"


async def test_a_handle_that_was_never_opened_is_an_error_and_no_more(operations: Operations) -> None:
    with pytest.raises(pyfuse3.FUSEError) as answered:
        await operations.read(pyfuse3.FileHandleT(99), 0, 10)
    assert answered.value.errno == errno.EIO


async def test_generated_files_are_read_as_they_were_when_opened(operations: Operations) -> None:
    handle = await opened(operations, Inode.POS)
    assert await operations.read(handle, 0, 4) == b"0123"
    assert await operations.read(handle, 8, 100) == b"89"
    assert await operations.read(handle, 50, 100) == b""


async def test_whoever_opens_a_file_too_early_waits_until_the_mount_is_ready(files: Files) -> None:
    operations = Operations(files, Owner(0, 0))
    handles: list[pyfuse3.FileHandleT] = []

    async def open_database() -> None:
        handles.append(await opened(operations))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_database)
        await trio.testing.wait_all_tasks_blocked()
        assert handles == []
        assert await opened(operations, Inode.STATUS), "who asks how it goes need not wait"
        operations.open_to_others()
    assert len(handles) == 1


async def test_the_last_client_to_leave_is_noticed(operations: Operations) -> None:
    first, second = await opened(operations), await opened(operations, Inode.SHM)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(operations.wait_until_unused)
        await operations.release(first)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        await operations.release(second)
    assert operations.client_handles == 0
