"""One mount from its beginning to its end: open the replica, show it, follow it, take it away.

Start: open the replica (position, indexes) → mount → open our own `-shm` through the mount and take the locks → ready.
End: stop following → close that descriptor, which keeps the mount busy → unmount → the session ends by itself.

Signals: SIGTERM and SIGINT end the mount within `STOP_LIMIT_S`, whoever is inside. SIGUSR1 ends it only if nobody has a
file open. When someone else detaches the mount, the daemon serves those who are inside until they are gone, and exits.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import select
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyfuse3
import trio
from numpy.typing import NDArray

import litereplica
from litereplica.errors import EnvironmentProblem, LiteReplicaError, PageSizeChanged
from litereplica.fuse import mountpoint
from litereplica.fuse.kernel_cache import FuseKernelCache
from litereplica.fuse.live import LiveDatabase
from litereplica.fuse.nodes import Inode, Owner
from litereplica.fuse.operations import Operations
from litereplica.replica.database import Replica
from litereplica.replica.poller import run_poller

log = logging.getLogger(__name__)

STOP_LIMIT_S = 4.0
"""An end that was asked for takes no longer: an init system kills what does not end."""

PUSH_QUEUE = 64
"""Fetched blocks that wait to be pushed to the kernel; more are dropped, since pushing only saves a later READ."""

MOUNT_CHECK_S = 10.0
"""The kernel tells of changes of the mount table; we look at least this often all the same."""

Block = tuple[NDArray[np.uint32], NDArray[np.void], list[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """What is mounted, where and how."""

    url: str
    path: Path
    name: str
    poll_interval_s: float
    allow_other: bool = False


class MountedDatabase:
    """The file system of a mount with one database: what `Operations` asks."""

    def __init__(self, options: MountOptions, replica: Replica, live: LiveDatabase) -> None:
        self.name = options.name
        self._options = options
        self._replica = replica
        self._live = live

    def size(self, inode: Inode) -> int:
        return self._live.size(inode)

    async def read(self, inode: Inode, offset: int, size: int) -> bytes:
        return await self._live.read(inode, offset, size)

    def generate(self, inode: Inode) -> bytes:
        if inode is Inode.POS:
            return f"{self._live.pos}\n".encode()
        return (json.dumps(self._status(), indent=2) + "\n").encode()

    def _status(self) -> dict[str, object]:
        return {
            "pid": os.getpid(),
            "version": litereplica.__version__,
            "url": self._options.url,
            "mountpoint": str(self._options.path),
            "name": self.name,
            "mount": _plain(self._live.statistics()),
            "replica": _plain(self._replica.statistics()),
        }


async def serve(
    options: MountOptions, opening: AbstractAsyncContextManager[Replica], ready: Callable[[], None]
) -> None:
    """Mount the replica that `opening` yields, call `ready` when it can be queried, and serve until the mount ends.

    `mountpoint.prepare` must have been called. Raises the errors of `opening`, and `EnvironmentProblem`.
    """
    async with opening as replica:
        live = LiveDatabase(replica, FuseKernelCache())
        replica.held_files = live.held_files
        await Session(options, replica, live).run(ready)


class Session:
    """The FUSE session of one mount, and the tasks around it."""

    def __init__(self, options: MountOptions, replica: Replica, live: LiveDatabase) -> None:
        self._options = options
        self._replica = replica
        self._live = live
        self._owner = Owner(os.getuid(), os.getgid())
        self._operations = Operations(MountedDatabase(options, replica, live), self._owner)
        self._shm: int | None = None  # our own descriptor on `-shm`
        self._following = trio.CancelScope()
        self._detached = trio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        path = self._options.path
        self._init_fuse()
        mounted = True
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._watch_signals)
                await nursery.start(self._watch_mount)
                nursery.start_soon(self._start_following, ready)
                await pyfuse3.main()
                mounted = False
                nursery.cancel_scope.cancel()
        finally:
            if mounted:
                with suppress(EnvironmentProblem):
                    mountpoint.unmount(path, lazy=True)
            pyfuse3.close(unmount=False)
            self._close_shm()  # not before: nobody would answer the request that this makes
        log.info("unmounted %s", path)

    def _init_fuse(self) -> None:
        source = mountpoint.option_value(self._options.url)
        fuse_options = {"nosuid", "nodev", "noatime", f"fsname={source}", "subtype=litereplica"}
        if self._options.allow_other:
            fuse_options.add("allow_other")
        try:
            pyfuse3.init(self._operations, str(self._options.path), fuse_options)
        except RuntimeError as exc:
            hint = "see the line of fusermount3 above"
            if self._options.allow_other and os.geteuid() != 0:
                hint = "--allow-other needs the line 'user_allow_other' in /etc/fuse.conf"
            raise EnvironmentProblem(f"cannot mount at {self._options.path}: {exc}", hint=hint) from exc

    # --- following -----------------------------------------------------------------------------

    async def _start_following(self, ready: Callable[[], None]) -> None:
        await self._open_shm()
        with self._following:
            async with trio.open_nursery() as nursery:
                send, receive = trio.open_memory_channel[Block](PUSH_QUEUE)
                nursery.start_soon(self._push_blocks, receive)
                self._replica.on_block = lambda *block: _offer(send, block)
                log.info("mounted %s at %s, TXID %016x", self._options.url, self._options.path, self._live.pos.txid)
                ready()
                await self._follow()

    async def _follow(self) -> None:
        """Apply what polls bring, as long as the files go on with our page size."""
        interval_s = self._options.poll_interval_s
        while True:
            try:
                await run_poller(self._replica, self._live.apply, interval_s=interval_s)
            except PageSizeChanged as exc:
                log.error("serving TXID %016x from now on: %s", self._live.pos.txid, exc)
                return
            except LiteReplicaError as exc:
                log.warning("the first poll failed, trying again: %s", exc)
                await trio.sleep(interval_s)

    async def _push_blocks(self, blocks: trio.MemoryReceiveChannel[Block]) -> None:
        async for block in blocks:
            await self._live.push(*block)

    async def _open_shm(self) -> None:
        """Open our own `-shm`; in a thread, because this makes requests to ourselves."""
        path = self._options.path / f"{self._options.name}-shm"
        self._shm = await trio.to_thread.run_sync(os.open, path, os.O_RDWR | os.O_CLOEXEC)
        await self._live.activate(self._shm)

    def _close_shm(self) -> None:
        if self._shm is not None:
            fd, self._shm = self._shm, None
            os.close(fd)

    # --- the end ---------------------------------------------------------------------------------

    async def _watch_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGUSR1 and self._operations.client_handles:
                    log.warning("not unmounted: %d files are open", self._operations.client_handles)
                else:
                    await self.stop(gently=number == signal.SIGUSR1)

    async def stop(self, *, gently: bool) -> None:
        """Unmount; with clients inside go back to serving if `gently`, else leave them behind."""
        path = self._options.path
        with trio.move_on_after(STOP_LIMIT_S / 2):
            await self._release_shm()
            if self._detached.is_set() or await trio.to_thread.run_sync(lambda: mountpoint.unmount(path, lazy=False)):
                return
            if gently:
                log.warning("not unmounted: %s is in use", path)
                await self._open_shm()
                return
        users = ", ".join(map(str, mountpoint.clients(path, besides=os.getpid())))
        log.warning("detaching %s while it is in use by %s", path, users or "someone")
        with trio.move_on_after(STOP_LIMIT_S / 2), suppress(EnvironmentProblem):
            await trio.to_thread.run_sync(lambda: mountpoint.unmount(path, lazy=True), abandon_on_cancel=True)
        pyfuse3.terminate()

    async def _release_shm(self) -> None:
        if self._shm is not None:
            await trio.to_thread.run_sync(self._close_shm)

    async def _watch_mount(self, task_status: trio.TaskStatus[None]) -> None:
        """When someone else has detached the mount, wait for the last client and let go."""
        with open("/proc/self/mountinfo", "rb") as table, select.epoll() as changes:  # noqa: PTH123, ASYNC230
            changes.register(table, select.EPOLLPRI | select.EPOLLERR)
            task_status.started()
            while mountpoint.mount_at(self._options.path) is not None:
                with trio.move_on_after(MOUNT_CHECK_S):
                    await trio.lowlevel.wait_readable(changes.fileno())
                changes.poll(0)
        self._detached.set()
        await self._operations.wait_until_unused()
        self._following.cancel()
        await self._release_shm()


def _plain(record: object) -> object:
    """Statistics as JSON has them."""
    if dataclasses.is_dataclass(record):
        return {field.name: _plain(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): _plain(value) for key, value in record.items()}
    return record


def _offer(send: trio.MemorySendChannel[Block], block: Block) -> None:
    with suppress(trio.WouldBlock):
        send.send_nowait(block)
