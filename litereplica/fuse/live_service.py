"""One live database of a mount: its content, and the tasks around it.

`LiveService` applies what polls bring, pushes fetched pages to the kernel, hydrates, watches staleness and the clients'
locks. It opens the daemon's own files of the database through the mount and takes the locks on them. A mount of one
database has one (`mount.py`).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.control.protocol import WaitFor
from litereplica.errors import LiteReplicaError, PageSizeChanged
from litereplica.fuse import nodes
from litereplica.fuse.at_tree import LISTED_POINTS, AtDirectory
from litereplica.fuse.client_locks import ClientLocks
from litereplica.fuse.kernel_cache import FuseKernelCache, LiveFile
from litereplica.fuse.live import LiveDatabase
from litereplica.fuse.nodes import Attributes
from litereplica.fuse.options import MountOptions
from litereplica.fuse.shielded import ShieldedBlocks
from litereplica.fuse.state import MountState
from litereplica.fuse.status_database import Row, StatusDatabase, point_row
from litereplica.replica.database import Replica, clock_through_suspend
from litereplica.replica.observer import ReplicaObserver
from litereplica.replica.poll_schedule import PAUSE_AFTER_S, PollSchedule
from litereplica.replica.poller import run_poller
from litereplica.replica.snapshot import Update
from litereplica.types import Pos

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


class LiveService:
    """A live database, which `run` keeps current once `open_own` has returned. A `LiveSource`.

    `files` are the inodes of its files, `past` its directory `.at`, None for none. `in_use` returns True while a client
    has one of its files open.
    """

    def __init__(
        self,
        options: MountOptions,
        replica: Replica,
        *,
        files: Mapping[LiveFile, int],
        clients: ClientLocks,
        past: AtDirectory | None,
        in_use: Callable[[], bool],
        shielded: ShieldedBlocks,
    ) -> None:
        self.kernel = FuseKernelCache(files)
        self.live = LiveDatabase(replica, self.kernel)
        self.clients = clients
        self.past = past
        self._options = options
        self._replica = replica
        self._schedule = schedule_of(options, in_use)
        self._shielded = shielded
        self._known_points: Sequence[Row] = ()
        self._timestamp_ms = replica.statistics().timestamp_ms
        self._current_at = clock_through_suspend()  # when everything known was last applied
        self._own: int | None = None  # our descriptor of `-shm`, which has the locks

    # --- what the nodes ask ----------------------------------------------------------------------

    @property
    def pos(self) -> Pos:
        """The position that a transaction which begins now will see."""
        return self.live.pos

    def attributes(self, file: LiveFile) -> Attributes:
        """Attributes with the current size."""
        return Attributes(size=self.live.size(file))

    async def prepare(self, file: LiveFile) -> None:
        """Poll if polls have become rare. Raises `StaleReplica`, but not for `-shm`: see `_require_fresh`."""
        await self._schedule.freshen()
        self._require_fresh(file)

    async def read(self, file: LiveFile, offset: int, size: int) -> bytes:
        """Answer a READ. Raises `StaleReplica`, and as `LiveFiles.read`."""
        self._require_fresh(file)
        return await self.live.read(file, offset, size)

    def read_now(self, file: LiveFile, offset: int, size: int) -> bytes | bytearray | None:
        """Answer a READ if that takes no waiting; else None."""
        if file is not LiveFile.DATABASE or self._replica.staleness_s > (self._options.max_staleness_s or math.inf):
            return None
        return self.live.read_now(offset, size)

    def opened(self, handle: int, file: LiveFile, thread_id: int) -> None:
        """Tell `clients`."""
        self.clients.opened(handle, file, thread_id)

    def closed(self, handle: int) -> None:
        """Tell `clients`."""
        self.clients.closed(handle)

    def _require_fresh(self, file: LiveFile) -> None:
        """Raise `StaleReplica` if the replica is too old to be read.

        `-shm` can always be read, because clients map it: an error there kills a client with SIGBUS.
        """
        if self._options.max_staleness_s is not None and file is not LiveFile.SHM:
            self._replica.require_fresh(self._options.max_staleness_s)

    def statistics(self) -> dict[str, object]:
        """Return what each part says, by name, for a status."""
        return {
            "mount": self.live.statistics(),
            "clients_without_locks": self.clients.statistics(),
            "replica": self._replica.statistics(),
            "polling": self._schedule.statistics(),
            "past": self.past.statistics() if self.past is not None else [],
        }

    def extended(self, uid: int) -> Mapping[str, str]:
        """Extended attributes of the database file."""
        return self.state().extended(is_insider=nodes.is_insider(uid))

    def state(self, stacked_on: Sequence[str] = ()) -> MountState:
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
            readers=partial(self.clients.readers, self.live.txid_at),
            clients_without_locks=self.clients.statistics(),
            stacked_on=stacked_on,
        )

    def status_database(self, inode: int, state: Callable[[], MountState]) -> StatusDatabase:
        """Return the node of the status as a database."""
        return StatusDatabase(inode, state, files=self._replica.ltx_files, points=self.points)

    async def points(self) -> Sequence[Row]:
        """Return the newest points. A store that does not answer in time leaves those of the last time."""
        if self.past is not None:
            with trio.move_on_after(POINTS_LIMIT_S), suppress(LiteReplicaError):
                found = await self.past.past.points(LISTED_POINTS)
                self._known_points = [point_row(point.txid, point.timestamp_ms) for point in found]
        newest = point_row(self.live.pos.txid, self._timestamp_ms)  # the listing may be some seconds old
        return [*(row for row in self._known_points if row["txid"] < newest["txid"]), newest]

    # --- waiting for a position ------------------------------------------------------------------

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

    # --- the daemon's own descriptors ------------------------------------------------------------

    async def open_own(self, path_of: Callable[[LiveFile], str]) -> None:
        """Open the daemon's descriptors on its own files and take the locks; nothing if it has them.

        In a thread, since this makes requests. `path_of` returns the path of a file in the mount.
        """
        if self._own is None:
            self._own = await trio.to_thread.run_sync(self._open_files, path_of)
            await self.live.activate(self._own)

    def _open_files(self, path_of: Callable[[LiveFile], str]) -> int:
        shm = os.open(path_of(LiveFile.SHM), os.O_RDWR | os.O_CLOEXEC)
        try:
            self.kernel.open_files(path_of)
        except BaseException:
            os.close(shm)
            raise
        return shm

    def close_own(self) -> None:
        """Close what `open_own` opened, which keeps the mount busy. Call it in a thread, too."""
        self.kernel.close_files()
        if self._own is not None:
            os.close(self._own)
            self._own = None

    # --- the tasks -------------------------------------------------------------------------------

    async def run(self, ready: Callable[[], None], *, device: str | None) -> None:
        """Call `ready`, and keep the database current until cancelled. `device` is that of the mount, if known."""
        async with trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel[Block](PUSH_QUEUE)
            nursery.start_soon(self._push_blocks, receive)
            self._replica.subscribe(_BlockQueue(send))
            ready()
            if self._options.max_staleness_s is not None:
                nursery.start_soon(self._watch_staleness, self._options.max_staleness_s)
            if self._options.hydrate and self.live.size(LiveFile.DATABASE) <= self._options.hydrate_limit:
                nursery.start_soon(self._hydrate)
            if self.past is not None:
                nursery.start_soon(self.past.run)
            if device is not None:
                nursery.start_soon(self.clients.run, device)
            await self._follow()

    async def _apply(self, update: Update | None) -> None:
        with self._shielded.block():
            await self.live.apply(update)
        newest = self._replica.snapshot
        if update is not None:
            log.debug(
                "TXID %016x is applied: %d pages have changed",
                self.live.pos.txid, len(update.changed), extra={"txid": f"{self.live.pos.txid:016x}"},
            )  # fmt: skip
        if self.live.pos == newest.pos:
            self._timestamp_ms = newest.timestamp_ms
            if self._replica.newest_txid <= newest.pos.txid:
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
            with self._shielded.block():
                await self.live.push(pgnos, locations, pages)

    async def _watch_staleness(self, limit_s: float) -> None:
        """When the replica is too old for its readers, take away what the kernel would answer without us."""
        while True:
            while (left_s := limit_s - self._replica.staleness_s) >= 0:  # noqa: ASYNC110 - see below
                await trio.sleep(min(left_s, MAX_STALENESS_PAUSE_S) + STALENESS_CHECK_S)
            with self._shielded.block():
                await self.live.forget_cached()
            log.error("reads fail: no news from %s for more than %g s", self._options.url, limit_s)
            while self._replica.staleness_s > limit_s:  # noqa: ASYNC110 - a poll wakes nobody
                await trio.sleep(STALENESS_CHECK_S)
            log.info("reads work again, at TXID %016x", self.live.pos.txid)

    async def _hydrate(self) -> None:
        await self._replica.hydrate(push=self._push, rate=self._options.hydrate_rate)


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
