"""A live mount: open the replica, show it, follow it.

Start: open the replica (position, indexes) → mount → open our own files through the mount and take the locks → ready.
End: stop following → close those descriptors, which keep the mount busy → unmount → the session ends by itself.
Between the two, nobody else can open a file: clients would meet a wal-index that nobody keeps.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.errors import LiteReplicaError, PageSizeChanged
from litereplica.fuse.at_tree import AtTree
from litereplica.fuse.kernel_cache import FuseKernelCache
from litereplica.fuse.live import LiveDatabase
from litereplica.fuse.nodes import Inode, Owner, file_names
from litereplica.fuse.operations import Operations
from litereplica.fuse.session import FuseSession, MountOptions
from litereplica.fuse.status import status
from litereplica.replica.database import Replica
from litereplica.replica.observer import ReplicaObserver
from litereplica.replica.poll_schedule import PAUSE_AFTER_S, PollSchedule
from litereplica.replica.poller import run_poller
from litereplica.replica.snapshot import Update

log = logging.getLogger(__name__)

PUSH_QUEUE = 8
"""Fetched blocks that wait to be pushed to the kernel; more are dropped, since pushing only saves a later READ."""

STALENESS_CHECK_S = 0.1
"""Time between looks at a replica that is too old; `--max-staleness` is meant in seconds."""

Block = tuple[NDArray[np.uint32], NDArray[np.void], list[bytes]]


class MountedDatabase:
    """The file system of a mount with one database: what `Operations` asks."""

    mtime_ns = 0  # constant: a change of mtime makes the kernel drop the file's cached pages

    def __init__(
        self, options: MountOptions, replica: Replica, live: LiveDatabase, schedule: PollSchedule, past: AtTree | None
    ) -> None:
        self.names = file_names(options.name)
        self._options = options
        self._replica = replica
        self._live = live
        self._schedule = schedule
        self._past = past

    def size(self, inode: Inode) -> int:
        return self._live.size(inode)

    def check_open(self, inode: Inode) -> None:
        """Readers who want nothing stale get nothing then. `-shm` is mapped, and an error there kills who reads it."""
        if self._options.max_staleness_s is not None and inode in (Inode.DATABASE, Inode.WAL):
            self._replica.require_fresh(self._options.max_staleness_s)

    async def read(self, inode: Inode, offset: int, size: int) -> bytes:
        self.check_open(inode)
        return await self._live.read(inode, offset, size)

    def generate(self, inode: Inode) -> bytes:
        if inode is Inode.POS:
            return f"{self._live.pos}\n".encode()
        past = self._past.statistics() if self._past is not None else []
        return status(
            self._options,
            mount=self._live.statistics(),
            replica=self._replica.statistics(),
            polling=self._schedule.statistics(),
            past=past,
        )


async def serve(
    options: MountOptions, opening: AbstractAsyncContextManager[Replica], ready: Callable[[], None]
) -> None:
    """Mount the replica that `opening` yields, call `ready` when it can be queried, and serve until the mount ends.

    `mountpoint.prepare` must have been called. Raises the errors of `opening`, and `EnvironmentProblem`.
    """
    async with opening as replica:
        kernel = FuseKernelCache()
        live = LiveDatabase(replica, kernel)
        past = AtTree(replica.past_snapshots(), name=options.name)
        await Session(options, replica, live, kernel, past).run(ready)


class Session(FuseSession):
    """The session of a live mount. `past` is its tree of past states, if it has one."""

    def __init__(
        self,
        options: MountOptions,
        replica: Replica,
        live: LiveDatabase,
        kernel: FuseKernelCache,
        past: AtTree | None = None,
    ) -> None:
        self._schedule = schedule_of(options, lambda: self._operations.client_handles > 0)
        files = MountedDatabase(options, replica, live, self._schedule, past)
        super().__init__(options, Operations(files, Owner(os.getuid(), os.getgid()), past))
        self._operations.before_open = self._schedule.freshen
        self._replica = replica
        self._live = live
        self._kernel = kernel
        self._past = past

    async def _serve(self, ready: Callable[[], None]) -> None:
        """Take the locks, let clients in, and follow."""
        await self._open_own()
        async with trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel[Block](PUSH_QUEUE)
            nursery.start_soon(self._push_blocks, receive)
            self._replica.subscribe(_LiveObserver(self._live, send))
            log.info("mounted %s at %s, TXID %016x", self._options.url, self._options.path, self._live.pos.txid)
            ready()
            if self._options.max_staleness_s is not None:
                nursery.start_soon(self._watch_staleness, self._options.max_staleness_s)
            if self._options.hydrate:
                nursery.start_soon(self._hydrate)
            if self._past is not None:
                nursery.start_soon(self._past.run)
            await self._follow()

    async def _apply(self, update: Update | None) -> None:
        with self._as_a_whole():
            await self._live.apply(update)

    async def _follow(self) -> None:
        """Apply what polls bring, as long as the files go on with our page size."""
        while True:
            try:
                await run_poller(self._replica, self._apply, schedule=self._schedule)
            except PageSizeChanged as exc:
                log.error("serving TXID %016x from now on: %s", self._live.pos.txid, exc)
                return
            except LiteReplicaError as exc:
                log.warning("the first poll failed, trying again: %s", exc)
                await trio.sleep(self._options.poll_interval_s)

    async def _push_blocks(self, blocks: trio.MemoryReceiveChannel[Block]) -> None:
        async for block in blocks:
            await self._push(*block)

    async def _push(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], pages: list[bytes]) -> None:
        if self._replica.staleness_s <= (self._options.max_staleness_s or math.inf):
            with self._as_a_whole():
                await self._live.push(pgnos, locations, pages)

    async def _watch_staleness(self, limit_s: float) -> None:
        """When the replica is too old for its readers, take away what the kernel would answer without us."""
        while True:
            while (left_s := limit_s - self._replica.staleness_s) >= 0:  # noqa: ASYNC110 - see below
                await trio.sleep(left_s + STALENESS_CHECK_S)
            with self._as_a_whole():
                await self._live.forget_cached()
            log.error("reads fail: no news from %s for more than %g s", self._options.url, limit_s)
            while self._replica.staleness_s > limit_s:  # noqa: ASYNC110 - a poll wakes nobody
                await trio.sleep(STALENESS_CHECK_S)
            log.info("reads work again, at TXID %016x", self._live.pos.txid)

    async def _hydrate(self) -> None:
        await self._replica.hydrate(push=self._push, rate=self._options.hydrate_rate)

    async def _open_own(self) -> None:
        """Open our own files; in a thread, because this makes requests to ourselves.

        `-shm` for its locks. The others so that the kernel knows them for as long as we tell it of changes.
        And one is closed at once, which tells the kernel that we do not want to know when files are closed. Without
        that, a child of ours that begins by closing what it inherited waits for our answer, and we wait for it to
        begin.
        """
        if not self._own:
            self._own = await trio.to_thread.run_sync(self._open_files)
            self._kernel.watch(dict(zip((Inode.DATABASE, Inode.WAL), self._own[1:], strict=True)))
            await self._live.activate(self._own[0])
        self._operations.open_to_others()

    def _open_files(self) -> list[int]:
        path = str(self._options.path / self._options.name)
        shm = os.open(f"{path}-shm", os.O_RDWR | os.O_CLOEXEC)
        os.close(os.open(f"{path}-pos", os.O_RDONLY | os.O_CLOEXEC))  # see above
        return [shm, *(os.open(name, os.O_PATH | os.O_CLOEXEC) for name in (path, f"{path}-wal"))]

    def _close_own(self) -> None:
        self._kernel.watch({})
        super()._close_own()


def schedule_of(options: MountOptions, in_use: Callable[[], bool]) -> PollSchedule:
    """The schedule of a mount's polls. That nobody looks is no reason to be too old for `--max-staleness`."""
    longest_s, pause_after_s = options.poll_interval_max_s, PAUSE_AFTER_S
    if options.max_staleness_s is not None:
        longest_s, pause_after_s = min(longest_s, options.max_staleness_s / 2), math.inf
    return PollSchedule(options.poll_interval_s, in_use=in_use, max_interval_s=longest_s, pause_after_s=pause_after_s)


class _LiveObserver(ReplicaObserver):
    """Queues fetched blocks for the kernel's page cache, and names the files that the virtual WAL's frames lie in."""

    def __init__(self, live: LiveDatabase, send: trio.MemorySendChannel[Block]) -> None:
        self._live = live
        self._send = send

    def held_files(self) -> NDArray[np.uint32]:
        return self._live.held_files()

    def on_block(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], pages: list[bytes]) -> None:
        with suppress(trio.WouldBlock):
            self._send.send_nowait((pgnos, locations, pages))
