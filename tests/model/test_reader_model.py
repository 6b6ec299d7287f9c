"""The read side against a naive model: any history, any compaction, loss, delay and damage in the store, any order of
polls; replicas that are made anew under the same name, restarts, and clocks that step.

Whatever happens, the database read at a snapshot is that of one history at that TXID, as are its past states, and an
update names every page that has changed. A reader that has come to a newer history never returns to an older one.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from litereplica.errors import (
    DamagedFile,
    FileVanished,
    GapError,
    NoReplica,
    NotFound,
    ReplicaError,
    TransientStorageError,
)
from litereplica.format.names import Layout
from litereplica.ltxstore import store as ltx_store
from litereplica.ltxstore.plan import plan_newest, reachable_txids
from litereplica.ltxstore.store import LTXStore
from litereplica.replica import database, file_reader, hydrate, remembered_position
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.next_files import LIST_INTERVAL_S, REBASE_INTERVAL_S
from litereplica.replica.past_snapshots import PastDatabase
from litereplica.replica.snapshot import Snapshot, Update
from litereplica.replica.statistics import HydrationState
from litereplica.storage.base import ObjectInfo
from litereplica.storage.wrappers import WrapperStorage
from litereplica.testing.faults import Fault, FaultStorage, Request
from litereplica.testing.memory import MemoryStorage
from litereplica.types import FileInfo, Pgno
from tests.helpers.history import History
from tests.helpers.trio_thread import TrioThread

EXAMPLES = int(os.environ.get("READER_MODEL_EXAMPLES", "400"))
STEPS = 50

SMALL = 300
"""Bytes that count as a small file here, instead of 256 KiB: most files are larger."""

TRAILER = 16
"""Bytes that tell a file from others: flipped, they make it another one."""

FORGET_EVERY = 5
"""Files before unused ones are forgotten, instead of 1,024."""

MAX_PAGES = 40
"""Small databases: that pages meet each other matters, not that they are many."""


class LaggingStorage(WrapperStorage):
    """Listings show the store of an earlier moment."""

    def __init__(self, inner: MemoryStorage) -> None:
        super().__init__(inner)
        self._memory = inner
        self.shown: list[ObjectInfo] | None = None

    async def freeze(self) -> None:
        self.shown = await self._memory.list("")

    async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
        if self.shown is None:
            return await self._memory.list(prefix, start_after=start_after)
        return [item for item in self.shown if item.key.startswith(prefix) and item.key > (start_after or "")]


class ReaderMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.trio = TrioThread()
        self.memory = MemoryStorage()
        self.lag = LaggingStorage(self.memory)
        self.faults = FaultStorage(self.lag, lambda request: None)
        self.history = History(self.memory)
        self.histories = [self.history]  # each made anew in the place of the one before
        self.seen: dict[int, tuple[Snapshot, set[int]]] = {}  # by id of a snapshot: which histories it may be of
        self.now = 0.0
        self.directory = TemporaryDirectory(prefix="reader-model-")
        self.pinned: list[Snapshot] = []
        self.pasts: list[PastDatabase] = []
        self.limits = pytest.MonkeyPatch()

    def teardown(self) -> None:
        self.limits.undo()
        self.trio.close()
        self.directory.cleanup()

    # --- the writer and its store ------------------------------------------------------------

    @initialize(
        pages=st.integers(1, MAX_PAGES),
        memory_size=st.sampled_from([0, 4_000, 1_000_000]),
        cache_size=st.sampled_from([0, 8_000, 1_000_000]),
        with_sums=st.booleans(),
    )
    def start(self, pages: int, memory_size: int, cache_size: int, with_sums: bool) -> None:
        self.with_sums = self.history.with_sums = with_sums
        for module in (ltx_store, file_reader, hydrate):
            self.limits.setattr(module, "WHOLE_FILE_LIMIT", SMALL)
        self.limits.setattr(database, "HEAL_PAUSE_S", 0.0)
        self.limits.setattr(remembered_position, "LISTING_PAUSE_S", 0.0)

        async def first() -> None:
            await self.history.commit({}, pages=pages)

        self.trio.run(first)
        self.sizes = cache_size, memory_size
        self.open()

    def open(self) -> None:
        cache_size, memory_size = self.sizes
        opened = open_replica(
            LTXStore(self.faults, Layout.S3),
            cache_dir=Path(self.directory.name) / "cache" if cache_size else None,
            cache_size=cache_size,
            memory_size=memory_size,
            forget_every=FORGET_EVERY,
            clock=lambda: self.now,
        )
        self.replica: Replica = self.trio.enter(opened)
        self.past = self.replica.past_snapshots()

    @rule(
        changes=st.dictionaries(st.integers(1, MAX_PAGES), st.binary(min_size=1, max_size=6), max_size=6),
        resize=st.none() | st.integers(1, MAX_PAGES),
    )
    def commit(self, changes: dict[Pgno, bytes], resize: int | None) -> None:
        async def run() -> None:
            await self.history.commit(changes, pages=resize)

        self.trio.run(run)

    @rule(commits=st.integers(1, 12), pages=st.integers(1, MAX_PAGES), keep=st.integers(0, 2), lineage=st.booleans())
    def make_anew(self, commits: int, pages: int, keep: int, lineage: bool) -> None:
        """Another database under the same name, of a writer of ours or of Litestream; some of its L0 are pruned."""
        with_sums, salts = self.with_sums, (len(self.histories) + 1, 7)
        anew = History(self.memory, with_sums=with_sums, wal_salts=salts, clock_ms=self.history.clock_ms + 1000)
        if not lineage:
            anew.lineage = 0

        async def run() -> None:
            await self.memory.delete([item.key for item in await self.memory.list("")])
            for number in range(commits):
                await anew.commit({1: b"of %d" % len(self.histories)}, pages=pages if number == 0 else None)
            if commits > keep + 1:
                await anew.compact(3, 1, commits - keep)
                for txid in range(1, commits - keep):
                    await anew.delete(0, txid)

        self.trio.run(run)
        self.history = anew
        self.histories.append(anew)

    @rule(minutes=st.sampled_from([1, 60, 10_000]))
    def clock_steps(self, minutes: int) -> None:
        """The reader's machine was suspended; and somebody set the clock of the writer, which stamps the files."""
        self.now += minutes * 60.0
        self.history.clock_ms += (minutes - 30) * 60_000

    @rule(data=st.data(), level=st.integers(1, 3))
    def compact(self, data: st.DataObject, level: int) -> None:
        """Any range, so that files overlap, straddle the readers' positions, or begin at 1."""
        last = data.draw(st.integers(1, self.history.txid))
        first = data.draw(st.integers(max(1, last - 8), last))

        async def run() -> None:
            await self.history.compact(level, first, last)

        self.trio.run(run)

    @rule()
    def snapshot(self) -> None:
        async def run() -> None:
            await self.history.snapshot()

        self.trio.run(run)

    @rule(data=st.data(), count=st.integers(1, 6))
    def prune(self, data: st.DataObject, count: int) -> None:
        """Delete files, as long as the rest still leads to the newest TXID; never the newest L0."""
        for _ in range(count):
            files = self.files()
            info = data.draw(st.sampled_from(files))
            rest = [other for other in files if other != info]
            if (info.level, info.max_txid) == (0, self.history.txid) or not leads_to(rest, self.history.txid):
                continue

            async def run(info: FileInfo = info) -> None:
                await self.history.delete(info.level, info.min_txid, info.max_txid)

            self.trio.run(run)

    @rule(lagging=st.booleans())
    def list_lag(self, lagging: bool) -> None:
        if lagging:
            self.trio.run(self.lag.freeze)
        else:
            self.lag.shown = None

    # --- the reader --------------------------------------------------------------------------

    @rule()
    def poll(self) -> None:
        self.poll_once()

    def poll_once(self) -> None:
        before = self.replica.snapshot
        try:
            self.check_update(before, self.trio.run(self.replica.poll))
        except (GapError, NoReplica):  # all that an outdated listing shows has gone
            assert self.lag.shown is not None
            assert len(self.histories) > 1
            assert self.replica.snapshot is before

    @rule()
    def poll_with_a_listing_reaches_the_newest(self) -> None:
        self.lag.shown = None
        before = self.replica.snapshot.pos.txid
        for _ in range(3):
            self.now += LIST_INTERVAL_S * 11
            self.poll_once()
        assert self.replica.snapshot.pos.txid == max(before, self.history.txid)

    @rule()
    def restart(self) -> None:
        """With the cache of before, if it has one: then never before what was served, unless that has gone."""
        before, of = self.replica.snapshot.pos.txid, self.may_be_of(self.replica.snapshot)
        self.trio.leave()
        self.pinned, self.pasts, self.seen = [], [], {}
        try:
            self.open()
        except (ReplicaError, FileVanished, TransientStorageError, NotFound):
            assert self.lag.shown is not None
            self.lag.shown = None
            self.open()
        served = f"ltx/0/{before:016x}-{before:016x}.ltx" in self.memory.objects
        same = of == {len(self.histories) - 1}
        if same and (self.lag.shown is None or (served and self.sizes[0])):
            assert self.replica.snapshot.pos.txid >= before

    @rule(n=st.integers(1, 12))
    def poll_with_a_fault(self, n: int) -> None:
        before = self.replica.snapshot
        countdown = iter(range(n, 0, -1))

        def plan(request: Request) -> Fault | None:
            return Fault() if next(countdown, 0) == 1 else None

        self.faults.plan = plan
        try:
            self.check_update(before, self.trio.run(self.replica.poll))
        except TransientStorageError:
            assert self.replica.snapshot is before
        finally:
            self.faults.plan = lambda request: None

    @rule()
    def heal(self) -> None:
        before = self.replica.snapshot
        try:
            self.check_update(before, self.trio.run(self.replica.heal))
        except (GapError, NoReplica, TransientStorageError):
            assert self.lag.shown is not None or self.was_left_behind()
            assert self.replica.snapshot is before

    @rule()
    def poll_when_rebasing_is_due(self) -> None:
        self.now += REBASE_INTERVAL_S + 1
        self.poll_once()

    @rule()
    def hydrate(self) -> None:
        """One pass, after which nothing has to be fetched, unless the page store is too small."""
        hydrator = self.replica._hydrator
        snapshot = self.replica.snapshot

        async def run() -> None:
            await hydrator._pass(snapshot.pages)

        try:
            self.trio.run(run)
        except FileVanished:
            return
        if self.replica.statistics().hydration.state is HydrationState.COMPLETE and not self.was_left_behind():
            fetched = self.replica.statistics().pages_from_store
            self.check_content(snapshot)
            assert self.replica.statistics().pages_from_store == fetched

    @rule()
    def pin(self) -> None:
        self.pinned = [*self.pinned[-3:], self.replica.snapshot]

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def read_pinned(self, data: st.DataObject) -> None:
        snapshot = data.draw(st.sampled_from(self.pinned))
        try:
            self.check_content(snapshot)
        except FileVanished:
            names = {(info.level, info.min_txid, info.max_txid) for info in self.files()}
            used = [self.replica._current.files.get(int(file_id)) for file_id in snapshot.pages.files()]
            made_anew = len(self.histories) - 1 not in self.may_be_of(snapshot)
            assert made_anew or any(
                file is None or (file.info.level, file.info.min_txid, file.info.max_txid) not in names for file in used
            )

    @rule(data=st.data())
    def travel(self, data: st.DataObject) -> None:
        """To any state that can be restored; a listing that lags, or is remembered, may show files that have gone."""
        txid = data.draw(st.sampled_from(reachable_txids(self.files())))

        async def run() -> PastDatabase:
            return await self.past.open(txid)

        try:
            past = self.trio.run(run)
        except (ReplicaError, FileVanished, TransientStorageError):
            return
        assert past.snapshot.pos.txid == txid
        self.pasts = [*self.pasts[-2:], past]
        self.read_past(past)

    @precondition(lambda self: self.pasts)
    @rule(data=st.data())
    def read_any_past(self, data: st.DataObject) -> None:
        self.read_past(data.draw(st.sampled_from(self.pasts)))

    def read_past(self, past: PastDatabase) -> None:
        async def run() -> list[bytes]:
            return await past.read(1, past.snapshot.commit)

        try:
            pages = self.trio.run(run)
        except (ReplicaError, FileVanished, TransientStorageError):
            return
        txid = past.snapshot.pos.txid
        assert dict(enumerate(pages, 1)) in [each.at(txid) for each in self.histories if each.txid >= txid]

    @precondition(lambda self: self.history.with_sums)
    @rule(data=st.data(), bit=st.integers(0, 7))
    def read_with_damage(self, data: st.DataObject, bit: int) -> None:
        """A flipped bit in one of the largest files or sums: what is served is right. Then it is repaired."""
        objects = self.memory.objects
        key = data.draw(st.sampled_from(sorted(objects, key=lambda key: (len(objects[key].data), key))[-3:]))
        stored = self.memory.objects[key]
        flipped = bytearray(stored.data)
        flipped[data.draw(st.integers(0, len(flipped) - TRAILER - 1))] ^= 1 << bit
        self.memory.objects[key] = replace(stored, data=bytes(flipped))
        before = self.replica.snapshot
        self.replica._current.pages._memory.clear()
        self.replica._hydrator._done = None  # it looks at all pages again after some minutes
        try:
            for _ in range(2):
                self.check_content(self.replica.snapshot)
                self.check_update(before, self.trio.run(self.replica.poll))
                before = self.replica.snapshot
        except (DamagedFile, FileVanished):
            try:
                self.check_update(before, self.trio.run(self.replica.heal))
                self.check_content(self.replica.snapshot)
            except (DamagedFile, FileVanished, GapError, NoReplica, TransientStorageError):
                pass
        self.memory.objects[key] = stored
        self.replica._next_files.catalog.damaged.clear()
        self.replica._current.files.condemned.clear()

    @invariant()
    def content_is_the_models(self) -> None:
        if not hasattr(self, "replica"):
            return
        for _ in range(2):
            snapshot = self.replica.snapshot
            try:
                self.check_content(snapshot)
            except FileVanished:
                self.lag.shown = None
                try:
                    self.check_update(snapshot, self.trio.run(self.replica.heal))
                except (GapError, NoReplica):
                    assert self.was_left_behind()
                    return
            else:
                return
        raise AssertionError("pages cannot be read after healing")

    @invariant()
    def every_location_names_a_file(self) -> None:
        """And after a cleaning no other file is kept."""
        if not hasattr(self, "replica"):
            return
        files = self.replica._current.files
        held = [*self.pinned, self.replica.snapshot, *(past.snapshot for past in self.pasts)]
        for snapshot in held:
            assert all(files.get(file_id) is not None for file_id in snapshot.pages.files().tolist())
        files.forget_unused()
        assert set(files._files) == files.holders.files()

    # --- helpers -----------------------------------------------------------------------------

    def files(self) -> list[FileInfo]:
        return self.trio.run(self.history.store.list_levels)

    def content(self, snapshot: Snapshot) -> dict[Pgno, bytes]:
        pgnos = np.arange(1, snapshot.commit + 1, dtype=np.uint32)

        async def read() -> list[bytes]:
            pages = await self.replica.read(pgnos, snapshot.pages.lookup(pgnos), around=snapshot.pages)
            assert self.replica.read_now(1, snapshot.commit, snapshot.pages) in (None, b"".join(pages))
            return pages

        return dict(zip(pgnos.tolist(), self.trio.run(read), strict=True))

    def may_be_of(self, snapshot: Snapshot) -> set[int]:
        """The numbers of the histories that a snapshot may be of, as far as is known."""
        txid = snapshot.pos.txid
        every = {number for number, history in enumerate(self.histories) if history.txid >= txid}
        _, numbers = self.seen.setdefault(id(snapshot), (snapshot, every))
        return numbers

    def check_content(self, snapshot: Snapshot) -> None:
        """A snapshot is of one history, and all that is read of it, now and later, is of that one."""
        content, numbers = self.content(snapshot), self.may_be_of(snapshot)
        fitting = {number for number in numbers if self.histories[number].at(snapshot.pos.txid) == content}
        assert fitting, f"the content at TXID {snapshot.pos.txid} is of none of the histories {numbers}"
        self.seen[id(snapshot)] = (snapshot, fitting)

    def was_left_behind(self) -> bool:
        """The replica was made anew, and has not come as far as the reader: it serves what it has."""
        return len(self.histories) > 1 and self.history.txid < self.replica.snapshot.pos.txid

    def check_update(self, before: Snapshot, update: Update | None) -> None:
        after = self.replica.snapshot
        if update is None:
            assert after is before
            return
        assert update.snapshot is after
        assert after.pos.txid >= before.pos.txid
        changed = update.changed.tolist()
        assert changed == sorted(set(changed))
        assert not changed or changed[-1] <= after.commit
        before_of, after_of = self.may_be_of(before), self.may_be_of(after)
        follow = {
            to for to in after_of if any(self.leads(before, a, after, to, set(changed)) for a in before_of if a <= to)
        }
        assert follow, (
            f"nothing leads from {before.pos.txid} of {before_of} to {after.pos.txid} of {after_of} by {changed}"
        )
        self.seen[id(after)] = (after, follow)
        if not update.relocated:
            rest = np.setdiff1d(np.arange(1, after.commit + 1, dtype=np.uint32), update.changed)
            assert (before.pages.lookup(rest) == after.pages.lookup(rest)).all()

    def leads(self, before: Snapshot, old_of: int, after: Snapshot, new_of: int, changed: set[Pgno]) -> bool:
        """Whether these pages are all that differ between two states of two histories."""
        old, new = self.histories[old_of].at(before.pos.txid), self.histories[new_of].at(after.pos.txid)
        return after.commit == len(new) and {pgno for pgno, page in new.items() if old.get(pgno) != page} <= changed


def leads_to(files: list[FileInfo], txid: int) -> bool:
    try:
        return plan_newest(files)[-1].max_txid == txid
    except ReplicaError:
        return False


def as_test(examples: int) -> type:
    """The machine as a test. It damages whatever there is: any log line may come."""

    class Machine(ReaderMachine):
        pass

    Machine.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    return pytest.mark.slow(pytest.mark.logs(".")(pytest.mark.filterwarnings("default")(Machine.TestCase)))


TestReaderModel1, TestReaderModel2, TestReaderModel3, TestReaderModel4 = (as_test(EXAMPLES // 4) for _ in range(4))
"""Several, so that they run side by side."""
