"""One mount from its beginning to its end: open the replica, show it, follow it, take it away.

Start: open the replica (position, indexes) → mount → open our own files through the mount and take the locks → ready.
End: stop following → close those descriptors, which keep the mount busy → unmount → the session ends by itself.
Between the two, nobody else can open a file: clients would meet a wal-index that nobody keeps.

Signals: SIGTERM and SIGINT end the mount within `STOP_LIMIT_S`, whoever is inside. SIGUSR1 ends it only if nobody has a
file open. When someone else detaches the mount, the daemon serves those who are inside until they are gone, and exits.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
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
from litereplica.replica.snapshot import Update

log = logging.getLogger(__name__)

STOP_LIMIT_S = 4.0
"""An end that was asked for takes no longer: an init system kills what does not end."""

GRACE_S = 0.5
"""How long an orderly end may take once the mount is gone; what is on the disk is valid at any moment."""

PUSH_QUEUE = 8
"""Fetched blocks that wait to be pushed to the kernel; more are dropped, since pushing only saves a later READ."""

STALENESS_CHECK_S = 0.1
"""Time between looks at a replica that is too old; `--max-staleness` is meant in seconds."""

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
    hydrate: bool = False
    hydrate_rate: float | None = None  # bytes per second
    max_staleness_s: float | None = None


class MountedDatabase:
    """The file system of a mount with one database: what `Operations` asks."""

    def __init__(self, options: MountOptions, replica: Replica, live: LiveDatabase) -> None:
        self.name = options.name
        self._options = options
        self._replica = replica
        self._live = live

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
        kernel = FuseKernelCache()
        live = LiveDatabase(replica, kernel)
        replica.held_files = live.held_files
        await Session(options, replica, live, kernel).run(ready)


class Session:
    """The FUSE session of one mount, and the tasks around it."""

    def __init__(self, options: MountOptions, replica: Replica, live: LiveDatabase, kernel: FuseKernelCache) -> None:
        self._options = options
        self._replica = replica
        self._live = live
        self._kernel = kernel
        self._owner = Owner(os.getuid(), os.getgid())
        self._operations = Operations(MountedDatabase(options, replica, live), self._owner)
        self._own: list[int] = []  # our descriptors on our own files
        self._following = trio.CancelScope()
        self._stopped = trio.Event()  # following has ended
        self._whole: set[trio.CancelScope] = set()
        self._detached = trio.Event()
        self._tasks: trio.Nursery

    async def run(self, ready: Callable[[], None]) -> None:
        path = self._options.path
        self._init_fuse()
        mounted = True
        try:
            async with trio.open_nursery() as self._tasks:
                await self._tasks.start(self._watch_signals)
                await self._tasks.start(self._watch_mount)
                self._tasks.start_soon(self._start_following, ready)
                await pyfuse3.main()
                mounted = False
                self._give_up()
                self._tasks.cancel_scope.cancel()
        finally:
            if mounted:
                with suppress(EnvironmentProblem):
                    mountpoint.unmount(path, lazy=True)
            pyfuse3.close(unmount=False)
            self._close_own()  # not before: nobody would answer the requests that this makes
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
        """Take the locks, let clients in, and follow until `_stop_following`."""
        try:
            with self._following:
                await self._open_own()
                async with trio.open_nursery() as nursery:
                    send, receive = trio.open_memory_channel[Block](PUSH_QUEUE)
                    nursery.start_soon(self._push_blocks, receive)
                    self._replica.on_block = lambda *block: _offer(send, block)
                    log.info("mounted %s at %s, TXID %016x", self._options.url, self._options.path, self._live.pos.txid)
                    ready()
                    if self._options.max_staleness_s is not None:
                        nursery.start_soon(self._watch_staleness, self._options.max_staleness_s)
                    if self._options.hydrate:
                        nursery.start_soon(self._hydrate)
                    await self._follow()
        finally:
            self._stopped.set()

    async def _stop_following(self) -> None:
        """Let go of what keeps the mount busy, once what is being applied is applied."""
        self._operations.close_to_others()
        self._following.cancel()
        await self._stopped.wait()
        if self._own:
            await trio.to_thread.run_sync(self._close_own)

    async def _resume_following(self) -> None:
        await self._stopped.wait()
        self._following, self._stopped = trio.CancelScope(), trio.Event()
        await self._start_following(lambda: None)

    @contextmanager
    def _as_a_whole(self) -> Iterator[None]:
        """Nothing but the session's end interrupts what is done inside: half an advance cannot be taken up again."""
        with trio.CancelScope(shield=True) as scope:
            self._whole.add(scope)
            try:
                yield
            finally:
                self._whole.remove(scope)

    def _give_up(self) -> None:
        for scope in self._whole:
            scope.shield = False

    async def _apply(self, update: Update | None) -> None:
        with self._as_a_whole():
            await self._live.apply(update)

    async def _follow(self) -> None:
        """Apply what polls bring, as long as the files go on with our page size."""
        interval_s = self._options.poll_interval_s
        while True:
            try:
                await run_poller(self._replica, self._apply, interval_s=interval_s)
            except PageSizeChanged as exc:
                log.error("serving TXID %016x from now on: %s", self._live.pos.txid, exc)
                return
            except LiteReplicaError as exc:
                log.warning("the first poll failed, trying again: %s", exc)
                await trio.sleep(interval_s)

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
            log.error("reads fail: no news from %s for more than %g s", self._options.url, limit_s)
            with self._as_a_whole():
                await self._live.forget_cached()
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
        descriptors, self._own = self._own, []
        for fd in descriptors:
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
        if await self._unmount():
            return
        path = self._options.path
        if gently:
            log.warning("not unmounted: %s is in use", path)
            self._tasks.start_soon(self._resume_following)
            return
        users = ", ".join(map(str, mountpoint.clients(path, besides=os.getpid())))
        log.warning("detaching %s while it is in use by %s", path, users or "someone")
        with trio.move_on_after(STOP_LIMIT_S / 2), suppress(EnvironmentProblem):
            await trio.to_thread.run_sync(lambda: mountpoint.unmount(path, lazy=True), abandon_on_cancel=True)
        pyfuse3.terminate()
        _exit_soon()

    async def _unmount(self) -> bool:
        """Stop following and unmount; False when the mount is in use, or this takes too long."""
        with trio.move_on_after(STOP_LIMIT_S / 2):
            await self._stop_following()
            if self._detached.is_set():
                return True
            return await trio.to_thread.run_sync(lambda: mountpoint.unmount(self._options.path, lazy=False))
        return False

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
        await self._stop_following()


def _exit_soon() -> None:
    """End the process although a request to the store may be under way, in a thread that nothing can stop."""
    timer = threading.Timer(GRACE_S, os._exit, [0])
    timer.daemon = True
    timer.start()


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
