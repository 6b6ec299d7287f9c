"""A live mount: open the replica, mount it, apply what polls bring.

Start: open the replica (position, indexes) → mount → open our own files through the mount and take the locks → ready.
End: stop following → close those descriptors, which keep the mount busy → unmount → the session ends by itself.
Before the first step is done and after the last has begun, clients that open a file wait: without the daemon's locks
they would try to recover the wal-index.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.control.protocol import WaitFor
from litereplica.errors import LiteReplicaError, PageSizeChanged
from litereplica.fuse import mountpoint, nodes
from litereplica.fuse.at_tree import LISTED_POINTS, AtDirectory
from litereplica.fuse.client_locks import HELP, ClientLocks
from litereplica.fuse.kernel_cache import FuseKernelCache, LiveFile
from litereplica.fuse.live import LiveDatabase
from litereplica.fuse.mountpoint import Owner
from litereplica.fuse.nodes import Attributes, Directory, GeneratedFile, InodeTable, Node
from litereplica.fuse.operations import Operations
from litereplica.fuse.session import FuseSession
from litereplica.fuse.state import MountOptions, MountState
from litereplica.fuse.status import public_status, status
from litereplica.fuse.status_database import Row, StatusDatabase, point_row
from litereplica.replica.database import Replica, clock_through_suspend
from litereplica.replica.observer import ReplicaObserver
from litereplica.replica.past_snapshots import PastSnapshots
from litereplica.replica.poll_schedule import PAUSE_AFTER_S, PollSchedule
from litereplica.replica.poller import run_poller
from litereplica.replica.snapshot import Update

log = logging.getLogger(__name__)

PUSH_QUEUE = 8
"""Fetched blocks that wait to be pushed to the kernel; more are dropped, since pushing only saves later READs."""

MAX_STALENESS_PAUSE_S = 1.0
"""How late the limit is noticed when the machine has been suspended: sleeping tasks do not notice that."""

POINTS_LIMIT_S = 2.0
"""How long opening the status database waits for the points."""

STALENESS_CHECK_S = 0.1
"""How often a replica that is too old is checked; the limit is given in seconds, so 0.1 s is precise enough."""

Block = tuple[NDArray[np.uint32], NDArray[np.void], list[bytes]]


class LiveNode(Node):
    """One of the three files of a live database.

    `before_open` is awaited before a client's open. `clients` are those of the database. `require_fresh` raises if the
    replica is too old to be read; `-shm` has none, because clients map it, and an error there kills a client with
    SIGBUS.
    """

    def __init__(
        self,
        inode: int,
        live: LiveDatabase,
        *,
        file: LiveFile,
        clients: ClientLocks,
        before_open: Callable[[], Awaitable[None]],
        state: Callable[[], MountState],
        require_fresh: Callable[[], None] | None,
    ) -> None:
        super().__init__(inode)
        self.daemon_may_write = file is LiveFile.SHM
        self._live = live
        self._file = file
        self._clients = clients
        self._before_open = before_open
        self._state = state
        self._require_fresh = require_fresh

    def attributes(self) -> Attributes:
        """Return the attributes with the current size."""
        return Attributes(size=self._live.size(self._file))

    def extended(self, uid: int) -> Mapping[str, str]:
        """Return the attributes of the database; the other files have none."""
        if self._file is not LiveFile.DATABASE:
            return {}
        return self._state().extended(is_insider=nodes.is_insider(uid))

    async def open(self, *, own: bool, uid: int) -> None:
        """Let a client open the file: poll first if polls have become rare, and refuse a replica that is too old."""
        if not own:
            await self._before_open()
            if self._require_fresh is not None:
                self._require_fresh()

    def may_open(self, thread_id: int) -> bool:
        """False for a client whose locks are missing. `-shm` may be opened, so that it can lock."""
        return self._file is LiveFile.SHM or self._clients.may_open(thread_id)

    def opened(self, handle: int, thread_id: int) -> None:
        """Tell `clients`."""
        self._clients.opened(handle, self._file, thread_id)

    def may_read(self, handle: int) -> bool:
        """False for a client whose locks are missing. `-shm` may be read: it is copied, and holds no rows."""
        return self._file is LiveFile.SHM or self._clients.may_read(handle)

    def release(self, handle: int) -> None:
        """Tell `clients`."""
        self._clients.closed(handle)

    async def read(self, offset: int, size: int) -> bytes:
        """Answer a READ. Raises `StaleReplica`, and as `LiveFiles.read`."""
        if self._require_fresh is not None:
            self._require_fresh()
        return await self._live.read(self._file, offset, size)


async def serve(
    options: MountOptions, opening: AbstractAsyncContextManager[Replica], ready: Callable[[], None]
) -> None:
    """Mount the replica that `opening` yields, call `ready` when it can be queried, and serve until the mount ends.

    `mountpoint.prepare` must have been called. Raises the errors of `opening`, and `EnvironmentProblem`.
    """
    async with opening as replica:
        await Session(options, replica, past=replica.past_snapshots(patience_s=options.read_timeout_s)).run(ready)


class Session(FuseSession):
    """The session of a live mount. With `past`, past states are in its directory `.at`."""

    def __init__(self, options: MountOptions, replica: Replica, *, past: PastSnapshots | None) -> None:
        inodes = InodeTable()
        root = inodes.allocate()
        files = {file: inodes.allocate() for file in LiveFile}
        self._replica = replica
        self._kernel = FuseKernelCache(files)
        self._clients = ClientLocks(files)
        self._stacked: list[str] = []  # file systems that are mounted over this one
        self._past = AtDirectory(inodes, past, name=options.name) if past is not None else None
        self._schedule = schedule_of(options, lambda: self._operations.client_handles > 0)
        self.live = LiveDatabase(replica, self._kernel)
        self._known_points: Sequence[Row] = ()
        self._timestamp_ms = replica.statistics().timestamp_ms
        self._current_at = clock_through_suspend()  # when everything known was last applied
        visible = self._database_nodes(options, inodes, files)
        about = inodes.add(GeneratedFile(inodes.allocate(), self._status, public=self._public, waits_until_ready=False))
        tables = StatusDatabase(inodes.allocate(), self.state, files=replica.ltx_files, points=self._points)
        hidden: dict[bytes, Node] = {
            nodes.STATUS_NAME.encode(): about,
            nodes.STATUS_DATABASE_NAME.encode(): inodes.add(tables),
        }
        if self._past is not None:
            hidden[nodes.AT_NAME.encode()] = inodes.add(self._past)
        inodes.add(Directory(root, visible, hidden=hidden))
        owner = Owner(os.getuid(), os.getgid())
        total_size = partial(self.live.size, LiveFile.DATABASE)
        super().__init__(options, Operations(inodes, owner, total_size=total_size, limit_s=options.request_limit_s))

    def _database_nodes(
        self, options: MountOptions, inodes: InodeTable, files: Mapping[LiveFile, int]
    ) -> dict[bytes, Node]:
        """The nodes of the live database by name, entered in the table."""
        freshen, limit_s = self._schedule.freshen, options.max_staleness_s
        require_fresh = partial(self._replica.require_fresh, limit_s) if limit_s is not None else None
        by_name: dict[bytes, Node] = {}
        for file, inode in files.items():
            fresh = require_fresh if file is not LiveFile.SHM else None
            node = LiveNode(
                inode,
                self.live,
                file=file,
                clients=self._clients,
                before_open=freshen,
                state=self.state,
                require_fresh=fresh,
            )
            by_name[f"{options.name}{file.value}".encode()] = inodes.add(node)
        attributes = Attributes(size=nodes.POS_SIZE)
        pos = GeneratedFile(inodes.allocate(), self._pos, attributes=attributes, before_open=freshen)
        by_name[f"{options.name}-pos".encode()] = inodes.add(pos)
        return by_name

    def _pos(self) -> bytes:
        return f"{self.live.pos}\n".encode()

    async def _points(self) -> Sequence[Row]:
        """Return the newest points. A store that does not answer in time leaves those of the last time."""
        if self._past is not None:
            with trio.move_on_after(POINTS_LIMIT_S), suppress(LiteReplicaError):
                found = await self._past.past.points(LISTED_POINTS)
                self._known_points = [point_row(point.txid, point.timestamp_ms) for point in found]
        newest = point_row(self.live.pos.txid, self._timestamp_ms)  # the listing may be some seconds old
        return [*(row for row in self._known_points if row["txid"] < newest["txid"]), newest]

    def _public(self) -> bytes:
        return public_status(self.state())

    def _status(self) -> bytes:
        return status(
            self._options,
            mount=self.live.statistics(),
            clients_without_locks=self._clients.statistics(),
            stacked_on=self._stacked,
            replica=self._replica.statistics(),
            polling=self._schedule.statistics(),
            past=self._past.statistics() if self._past is not None else [],
        )

    def state(self) -> MountState:
        """Return the state of this moment."""
        replica, now = self._replica.statistics(), clock_through_suspend()
        return MountState(
            options=self._options,
            replica=replica,
            txid=self.live.pos.txid,
            timestamp_ms=self._timestamp_ms,
            error=replica.last_error or replica.reason,
            current_age_s=now - self._current_at,
            news_age_s=now - replica.last_success_at,
            polling=self._schedule.statistics(),
            wal_frames=self.live.statistics().wal_frames,
            readers=self._clients.readers(self.live.txid_at),
            clients_without_locks=self._clients.statistics(),
            stacked_on=self._stacked,
        )

    async def reach(self, wanted: WaitFor) -> None:
        """Return when transactions that begin now see what is wanted: one poll at once, then the regular ones."""
        with self._schedule.regular():
            if wanted.txid is None and wanted.time_ms is None:
                await self._catch_up()
                return
            if not self._has_reached(wanted):
                await self._schedule.poll_now()
            while not self._has_reached(wanted):
                await self._schedule.next_poll()

    def _has_reached(self, wanted: WaitFor) -> bool:
        if wanted.txid is not None:
            return self.live.pos.txid >= wanted.txid
        return wanted.time_ms is not None and self._timestamp_ms >= wanted.time_ms

    async def _catch_up(self) -> None:
        """Return after a poll that began after this call and found nothing that is not applied."""
        began, failed = clock_through_suspend(), False
        while True:
            before = self.live.pos
            await (self._schedule.next_poll() if failed else self._schedule.poll_now())
            now = self._replica.statistics()
            failed = bool(now.last_error) or now.last_success_at < began
            if not failed and before == self.live.pos == now.pos and now.newest_txid <= now.pos.txid:
                return

    async def _serve(self, ready: Callable[[], None]) -> None:
        """Take the locks, let clients in, and follow."""
        await self._open_own()
        async with trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel[Block](PUSH_QUEUE)
            nursery.start_soon(self._push_blocks, receive)
            self._replica.subscribe(_BlockQueue(send))
            log.info("mounted %s at %s, TXID %016x", self._options.url, self._options.path, self.live.pos.txid)
            ready()
            if self._options.max_staleness_s is not None:
                nursery.start_soon(self._watch_staleness, self._options.max_staleness_s)
            if self._options.hydrate:
                nursery.start_soon(self._hydrate)
            if self._past is not None:
                nursery.start_soon(self._past.run)
            if self._mount is not None:
                nursery.start_soon(self._clients.run, self._mount.device)
            await self._follow()

    def _note_mounts(self) -> None:
        """Name file systems that were mounted over this one."""
        found = [f"{each.path} ({each.type})" for each in mountpoint.stacked_on(self._options.path)]
        for each in set(found).difference(self._stacked):
            log.warning(
                "%s is mounted over this file system: databases cannot be used there, since SQLite's locks or its"
                " shared memory do not pass through; see %s",
                each,
                HELP,
            )
        self._stacked = found

    async def _apply(self, update: Update | None) -> None:
        with self._as_a_whole():
            await self.live.apply(update)
        replica = self._replica.statistics()
        if update is not None:
            log.debug(
                "TXID %016x is applied: %d pages have changed",
                self.live.pos.txid, len(update.changed), extra={"txid": f"{self.live.pos.txid:016x}"},
            )  # fmt: skip
        if self.live.pos == replica.pos:
            self._timestamp_ms = replica.timestamp_ms
            if replica.newest_txid <= replica.pos.txid:
                self._current_at = clock_through_suspend()

    async def _follow(self) -> None:
        """Apply what polls bring, as long as the files go on with our page size."""
        said = ""
        while True:
            try:
                await run_poller(self._replica, self._apply, schedule=self._schedule)
            except PageSizeChanged as exc:
                log.error("serving TXID %016x from now on: %s", self.live.pos.txid, exc)
                return
            except LiteReplicaError as exc:
                if str(exc) != said:
                    log.warning("the first poll failed, trying again: %s", exc)
                said = str(exc)
                await trio.sleep(self._options.poll_interval_s)

    async def _push_blocks(self, blocks: trio.MemoryReceiveChannel[Block]) -> None:
        async for block in blocks:
            await self._push(*block)

    async def _push(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], pages: list[bytes]) -> None:
        if self._replica.staleness_s <= (self._options.max_staleness_s or math.inf):
            with self._as_a_whole():
                await self.live.push(pgnos, locations, pages)

    async def _watch_staleness(self, limit_s: float) -> None:
        """When the replica is too old for its readers, take away what the kernel would answer without us."""
        while True:
            while (left_s := limit_s - self._replica.staleness_s) >= 0:  # noqa: ASYNC110 - see below
                await trio.sleep(min(left_s, MAX_STALENESS_PAUSE_S) + STALENESS_CHECK_S)
            with self._as_a_whole():
                await self.live.forget_cached()
            log.error("reads fail: no news from %s for more than %g s", self._options.url, limit_s)
            while self._replica.staleness_s > limit_s:  # noqa: ASYNC110 - a poll wakes nobody
                await trio.sleep(STALENESS_CHECK_S)
            log.info("reads work again, at TXID %016x", self.live.pos.txid)

    async def _hydrate(self) -> None:
        await self._replica.hydrate(push=self._push, rate=self._options.hydrate_rate)

    async def _open_own(self) -> None:
        """Open the daemon's descriptors on its own files and take the locks; in a thread, since this makes requests.

        `-shm` is for the locks; the kernel cache opens the other two. `-pos` is opened and closed at once: the answer
        to that FLUSH makes the kernel send no other. Without it, a child of this process that begins by closing
        inherited descriptors would wait for our answer, while we wait for the child to begin.
        """
        if not self._own:
            self._own = await trio.to_thread.run_sync(self._open_files)
            await self.live.activate(self._own[0])
        self._operations.open_to_others()

    def _open_files(self) -> list[int]:
        path = str(self._options.path / self._options.name)
        shm = os.open(f"{path}-shm", os.O_RDWR | os.O_CLOEXEC)
        os.close(os.open(f"{path}-pos", os.O_RDONLY | os.O_CLOEXEC))  # see above
        self._kernel.open_files(path)
        return [shm]

    def _close_own(self) -> None:
        self._kernel.close_files()
        super()._close_own()


def schedule_of(options: MountOptions, in_use: Callable[[], bool]) -> PollSchedule:
    """The schedule of a mount's polls. An idle mount still polls often enough for `--max-staleness`."""
    longest_s, pause_after_s = options.poll_interval_max_s, PAUSE_AFTER_S
    if options.max_staleness_s is not None:
        longest_s, pause_after_s = min(longest_s, options.max_staleness_s / 2), math.inf
    return PollSchedule(options.poll_interval_s, in_use=in_use, max_interval_s=longest_s, pause_after_s=pause_after_s)


class _BlockQueue(ReplicaObserver):
    """Queues fetched blocks for the kernel's page cache; a full queue drops them."""

    def __init__(self, send: trio.MemorySendChannel[Block]) -> None:
        self._send = send

    def on_block(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], pages: list[bytes]) -> None:
        with suppress(trio.WouldBlock):
            self._send.send_nowait((pgnos, locations, pages))
