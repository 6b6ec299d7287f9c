"""`verify`: what it says of sound replicas, of each kind of damage, and of files that come and go meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import trio

from litereplica.compaction.compaction import compact_level, snapshot
from litereplica.compaction.pruner import Pruner
from litereplica.compaction.retention import RetentionPolicy
from litereplica.errors import NoReplica, ReplicaError
from litereplica.format import ltx
from litereplica.format.decoder import decode_file
from litereplica.format.frame_checksums import SEGMENT_FRAMES, ChecksumsHead, crc32c
from litereplica.format.names import Layout
from litereplica.history.verify import Problem, Report, Severity, verify
from litereplica.ltxstore import file_stream
from litereplica.ltxstore import store as store_module
from litereplica.ltxstore.frame_checksums import frame_checksums_key
from litereplica.ltxstore.plan import plan_restore
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.base import Blob, ObjectInfo, Range
from litereplica.storage.wrappers import MeteredStorage
from litereplica.storage.wrappers.delegate import Operation
from litereplica.testing.ltx_files import encode_file
from litereplica.testing.memory import MemoryStorage
from litereplica.times import DAY_MS, SteadyClock
from litereplica.types import FileInfo
from tests.helpers.pruning import prune_due
from tests.ltxstore.replicas import TIMESTAMP_MS, History, make_file, memory_store, page_of, publish, put


@pytest.fixture
def history() -> History:
    made = History()
    for size, changed in (
        (6, ()),
        (9, (1, 3)),
        (40, (2,)),
        (12, (1,)),
        (12, (1, 5)),
        (20, (2, 12)),
        (20, (1,)),
        (25, ()),
    ):
        made.commit(size, *changed)
    return made


async def fill(store: LTXStore, history: History, *files: tuple[int, int, int]) -> list[FileInfo]:
    return [await publish(store, history, *file) for file in files]


def l0(first: int, last: int) -> list[tuple[int, int, int]]:
    return [(0, txid, txid) for txid in range(first, last + 1)]


def only(report: Report, severity: Severity = Severity.ERROR) -> Problem:
    (problem,) = [problem for problem in report.problems if problem.severity is severity]
    return problem


SOUND: dict[str, Sequence[tuple[int, int, int]]] = {
    "level 0 alone": l0(1, 8),
    "a snapshot alone": [(9, 1, 8)],
    "all that there is": [*l0(1, 8), (1, 1, 3), (1, 4, 6), (1, 7, 8), (2, 1, 6), (9, 1, 5), (9, 1, 8)],
    "level 0 pruned": [*l0(7, 8), (1, 1, 3), (1, 4, 6)],
    "only the newest of level 0": [(0, 8, 8), (1, 1, 5), (1, 6, 8), (9, 1, 5)],
    "behind a snapshot": [(0, 8, 8), (1, 4, 8), (9, 1, 5)],
}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("files", SOUND.values(), ids=SOUND)
async def test_a_sound_replica_has_no_problems(
    history: History, files: list[tuple[int, int, int]], layout: Layout, quick: bool
) -> None:
    store = LTXStore(MemoryStorage(), layout)
    infos = await fill(store, history, *files)
    report = await verify(store, quick=quick)
    assert report.problems == ()
    assert (report.files, report.size, report.newest) == (len(files), sum(info.size for info in infos), 8)
    assert report.points == len({info.max_txid for info in infos})


async def test_no_files_are_no_replica() -> None:
    store = memory_store()
    await store.storage.put("lock.json", b"{}")
    with pytest.raises(NoReplica):
        await verify(store)


# --- damaged files ---------------------------------------------------------------------------


def regions(data: bytes) -> dict[str, int]:
    """An offset in each part of a file."""
    index_size = ltx.decode_index_size(data[-ltx.TAIL_SIZE :], file_size=len(data))
    index = len(data) - ltx.TAIL_SIZE - index_size
    return {
        "magic": 0,
        "commit": 15,
        "min TXID": 23,
        "max TXID": 31,
        "timestamp": 39,
        "frame's pgno": ltx.HEADER_SIZE + 3,
        "frame's size": ltx.HEADER_SIZE + 9,
        "page": ltx.HEADER_SIZE + 14,
        "end of frames": index - 3,
        "index": index + 1,
        "index's size": len(data) - ltx.TRAILER_SIZE - 1,
        "post-apply checksum": len(data) - 9,
        "file checksum": len(data) - 1,
    }


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("region", regions(make_file({1: b"." * 512}, commit=1, low=1, high=1)))
async def test_a_flipped_bit_is_found_wherever_it_is(history: History, region: str, quick: bool) -> None:
    store = memory_store()
    await fill(store, history, *l0(1, 8))
    key = store.key(FileInfo(0, 6, 6, 0))
    data = bytearray((await store.storage.get(key)).data)
    data[regions(bytes(data))[region]] ^= 1
    await store.storage.put(key, bytes(data))
    report = await verify(store, quick=quick)
    problem = only(report)
    assert (problem.key, problem.lost, report.points) == (key, (6, 8), 8)
    assert problem.means == "TXIDs 0000000000000006-0000000000000008 cannot be restored"


@pytest.mark.parametrize("left", [0, 1, 99, 100, 123, 160, -1])
async def test_a_file_that_was_cut_is_found(history: History, left: int) -> None:
    store = memory_store()
    await fill(store, history, *l0(1, 8))
    key = store.key(FileInfo(0, 8, 8, 0))
    await store.storage.put(key, (await store.storage.get(key)).data[:left])
    assert (only(await verify(store)).key, only(await verify(store)).lost) == (key, (8, 8))


async def test_a_damaged_file_whose_transactions_others_have_loses_nothing(history: History) -> None:
    store = memory_store()
    await fill(store, history, *l0(1, 8), (1, 1, 3))
    key = store.key(FileInfo(1, 1, 3, 0))
    await store.storage.put(key, b"x" * 200)
    problem = only(await verify(store))
    assert (problem.key, problem.lost) == (key, None)
    assert "nothing is lost" in problem.means


async def test_points_behind_a_snapshot_are_not_lost_with_what_is_before_it(history: History) -> None:
    store = memory_store()
    await fill(store, history, *l0(1, 8), (9, 1, 6))
    await store.storage.put(store.key(FileInfo(0, 3, 3, 0)), b"")
    assert only(await verify(store)).lost == (3, 5)


async def test_a_file_under_another_name_is_found(history: History) -> None:
    store = memory_store()
    await fill(store, history, *l0(1, 7))
    await put(store, 0, 8, 8, history.file(7, 7))
    problem = only(await verify(store))
    assert problem.lost == (8, 8)
    assert "differ from its name" in problem.what


async def test_what_cannot_be_restored_is_exactly_what_is_said(history: History) -> None:
    """Each set of two damaged files among many: the points that are named lost are those without a plan."""
    store = memory_store()
    infos = await fill(store, history, *l0(1, 8), (1, 1, 3), (1, 4, 6), (2, 1, 6), (9, 1, 4))
    for pair in itertools.combinations(infos, 2):
        bodies = [(await store.get(info)).data for info in pair]
        for info in pair:
            await store.storage.put(store.key(info), b"x" * info.size)
        lost: set[int] = set()
        for problem in (await verify(store)).problems:
            lost.update(range(problem.lost[0], problem.lost[1] + 1) if problem.lost else ())
        good = [info for info in infos if info not in pair]
        assert lost == {txid for txid in range(1, 9) if not has_plan(good, txid)}, pair
        for info, body in zip(pair, bodies, strict=True):
            await store.storage.put(store.key(info), body)


def has_plan(files: list[FileInfo], txid: int) -> bool:
    try:
        plan_restore(files, target=txid)
    except ReplicaError:
        return False
    return True


# --- gaps, pages, merges ---------------------------------------------------------------------


async def test_files_beyond_a_gap_cannot_be_restored(history: History) -> None:
    store = memory_store()
    await fill(store, history, *l0(1, 3), *l0(6, 8))
    problem = only(await verify(store))
    assert (problem.key, problem.lost) == (store.key(FileInfo(0, 6, 6, 0)), (6, 8))
    assert "TXIDs 0000000000000004-0000000000000005" in problem.what


async def test_without_a_beginning_nothing_can_be_restored(history: History) -> None:
    store = memory_store()
    await fill(store, history, *l0(3, 8))
    report = await verify(store)
    assert (only(report).lost, report.points) == ((3, 8), 0)


async def test_a_gap_that_only_a_snapshot_bridges_loses_what_lies_in_it(history: History) -> None:
    store = memory_store()
    await fill(store, history, (1, 1, 2), *l0(4, 8), (9, 1, 6))
    problem = only(await verify(store))
    assert (problem.key, problem.lost) == (store.key(FileInfo(0, 4, 4, 0)), (4, 5))


@pytest.mark.parametrize("files", [[(3, 2, 3), *l0(6, 8), (9, 1, 5)], [(1, 2, 2), (1, 3, 3), (0, 8, 8), (9, 1, 7)]])
async def test_what_retention_leaves_over_is_only_noted(history: History, files: list[tuple[int, int, int]]) -> None:
    store = memory_store()
    await fill(store, history, *files)
    report = await verify(store)
    assert report.problems
    assert {problem.severity for problem in report.problems} == {Severity.NOTE}


async def test_a_gap_in_a_level_that_others_bridge_is_only_noted(history: History) -> None:
    store = memory_store()
    await fill(store, history, *l0(1, 8), (1, 1, 2), (1, 5, 8))
    problem = only(await verify(store), Severity.NOTE)
    assert problem.key == store.key(FileInfo(1, 5, 8, 0))
    assert "TXIDs 0000000000000003-0000000000000004" in problem.what


async def test_a_page_that_no_file_supplies_loses_the_points_that_need_it(history: History) -> None:
    store = memory_store()
    await fill(store, history, *l0(1, 5))
    grown = {14: page_of(14, 6), 2: page_of(2, 6)}
    await put(store, 0, 6, 6, make_file(grown, commit=14, low=6, high=6))  # page 13 is missing
    await put(store, 0, 7, 7, make_file({13: page_of(13, 7)}, commit=14, low=7, high=7))
    problem = only(await verify(store))
    assert (problem.key, problem.lost) == (store.key(FileInfo(0, 6, 6, 0)), (6, 6))
    assert "page 13" in problem.what


async def test_a_damaged_file_is_not_made_up_for_by_files_that_lack_pages(history: History) -> None:
    store = memory_store()
    await fill(store, history, *l0(1, 5))
    await put(store, 0, 6, 6, make_file({14: page_of(14, 6)}, commit=14, low=6, high=6))
    await put(store, 1, 4, 6, b"x" * 200)
    problems = (await verify(store)).problems
    assert [(problem.severity, problem.lost) for problem in problems] == [(Severity.ERROR, (6, 6))] * 2


@pytest.mark.parametrize("level", [1, 9])
async def test_a_merged_file_that_differs_from_its_sources_is_found(history: History, level: int) -> None:
    store = memory_store()
    await fill(store, history, *l0(1, 8))
    other = History(sizes=history.sizes, changes=[*history.changes[:2], {**history.changes[2], 7: b"?" * 512}])
    await put(store, level, 1, 3, other.file(1, 3))
    problem = only(await verify(store))
    assert problem.key == store.key(FileInfo(level, 1, 3, 0))
    assert "page 7 differs from the files it was merged from" in problem.what


async def test_a_merged_file_with_another_time_is_a_warning(history: History) -> None:
    store = memory_store()
    await fill(store, history, *l0(1, 3))
    header = ltx.Header(page_size=512, commit=40, min_txid=2, max_txid=3, timestamp_ms=TIMESTAMP_MS + 1)
    await put(store, 1, 2, 3, encode_file(header, sorted({**history.changes[1], **history.changes[2]}.items())))
    assert "another timestamp" in only(await verify(store), Severity.WARNING).what


async def test_a_clock_that_was_set_back_is_noted(history: History) -> None:
    store = memory_store()
    for txid, timestamp_ms in enumerate((1000, 3000, 2000, 2500), 1):
        header = ltx.Header(page_size=512, commit=1, min_txid=txid, max_txid=txid, timestamp_ms=timestamp_ms)
        await put(store, 0, txid, txid, encode_file(header, [(1, page_of(1, txid))]))
    problem = only(await verify(store), Severity.NOTE)
    assert problem.key == store.key(FileInfo(0, 3, 3, 0))
    assert "once" in problem.what


async def test_overlaps_and_straddling_are_warnings(history: History) -> None:
    store = memory_store()
    await fill(store, history, *l0(1, 8), (1, 1, 4), (1, 3, 7), (2, 1, 5))
    report = await verify(store)
    assert {problem.severity for problem in report.problems} == {Severity.WARNING}
    overlap, straddle = sorted(report.problems, key=lambda problem: "straddles" in problem.what)
    assert overlap.key == straddle.key == store.key(FileInfo(1, 3, 7, 0))
    assert "TXIDs 0000000000000003-0000000000000004" in overlap.what
    assert "level 2 ends" in straddle.what


async def test_odd_files_of_level_0_and_of_the_snapshots_are_warnings(history: History) -> None:
    store = memory_store()
    await fill(store, history, (0, 1, 2), *l0(3, 8), (9, 3, 6))
    report = await verify(store)
    assert {problem.key for problem in report.problems} == {
        store.key(FileInfo(0, 1, 2, 0)),
        store.key(FileInfo(9, 3, 6, 0)),
    }
    assert report.errors == 0


async def test_foreign_objects_are_noted_once_a_directory_and_the_lease_is_none(history: History) -> None:
    store = memory_store()
    await fill(store, history, *l0(1, 8))
    for key in ("lock.json", "0000/UPPER.ltx", "readme", "other/0000/a", "other/0000/b", "000a/x"):
        await store.storage.put(key, b"x")
    report = await verify(store)
    assert {problem.severity for problem in report.problems} == {Severity.NOTE}
    assert sorted(problem.key for problem in report.problems) == ["0000/UPPER.ltx", "000a/x", "other/0000/a", "readme"]
    for number in range(50):
        await store.storage.put(f"many{number}/x", b"x")
    assert len((await verify(store)).problems) == 21


def sums_of(data: bytes, *, checksum: int | None = None) -> bytes:
    """The sums of a file, or of the same pages in a file with another checksum."""
    file = decode_file(data)
    frames = [
        crc32c(data[offset : offset + size])
        for offset, size in zip(file.index.offset.tolist(), file.index.size.tolist(), strict=True)
    ]
    head = ChecksumsHead(len(frames), checksum or file.file_checksum, crc32c(data[: ltx.HEADER_SIZE]), 0)
    segments = range(0, len(frames), SEGMENT_FRAMES)
    parts = [np.array(frames[start : start + SEGMENT_FRAMES], np.uint32) for start in segments]
    return head.encode() + b"".join(head.encode_segment(number, part) for number, part in enumerate(parts))


async def test_sums_beside_files_are_checked_and_never_foreign(history: History) -> None:
    store = memory_store()
    infos = await fill(store, history, *l0(1, 8))
    keys = [frame_checksums_key(info) for info in infos]
    bodies = [history.file(txid, txid) for txid in range(1, 9)]
    await store.storage.put(keys[2], sums_of(bodies[2]))
    assert (await verify(store)).problems == ()
    await store.storage.put(keys[3], sums_of(bodies[3], checksum=1 << 63))
    await store.storage.put(keys[4], sums_of(bodies[4])[:-1])
    await store.storage.put(keys[5], sums_of(bodies[5])[:-1] + b"?")
    await store.storage.put(frame_checksums_key(FileInfo(9, 1, 5, 0)), b"")
    report = await verify(store)
    told = [(problem.severity, problem.key) for problem in report.problems]
    expected = [(Severity.WARNING, key) for key in keys[3:6]]
    assert told == [*expected, (Severity.NOTE, frame_checksums_key(FileInfo(9, 1, 5, 0)))]
    assert "another file" in report.problems[0].what


@pytest.mark.parametrize("layout", Layout)
async def test_what_we_compacted_snapshotted_and_pruned_is_sound_with_its_sums(layout: Layout) -> None:
    history = History()
    store = LTXStore(MemoryStorage(), layout)
    for size in (9000, 9500, 9400, 9600):
        history.commit(size, 1, 2, 3)
        await publish(store, history, 0, history.txid, history.txid)
        if history.txid % 2 == 0:
            assert await compact_level(store, 1) is not None
    assert await snapshot(store) is not None
    assert len(await store.list_frame_checksums()) == 2  # of level 1's first file and of the snapshot
    assert (await verify(store)).problems == ()
    clock = SteadyClock(lambda: TIMESTAMP_MS + 90 * DAY_MS)
    assert await prune_due(Pruner(store, RetentionPolicy(l0_ms=1, snapshot_ms=1), clock))
    for quick in (True, False):
        assert (await verify(store, quick=quick)).problems == ()


# --- files that come and go ------------------------------------------------------------------


class Moving(MemoryStorage):
    """Before the n-th request something happens."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0
        self.events: dict[int, Callable[[], object]] = {}

    async def get(self, key: str, range: Range | None = None) -> Blob:
        await self._step()
        return await super().get(key, range)

    async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
        await self._step()
        return await super().list(prefix, start_after=start_after)

    async def _step(self) -> None:
        self.requests += 1
        event = self.events.pop(self.requests, None)
        if event is not None:
            await event()  # type: ignore[misc]  # a coroutine function


@pytest.mark.parametrize("quick", [False, True])
async def test_compaction_and_retention_meanwhile_are_no_problem(
    history: History, quick: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """At each point in time level 0 is merged and deleted."""
    for request in range(1, 12):
        storage = Moving()
        store = memory_store(storage)
        await fill(store, history, *l0(1, 8))

        async def compact(store: LTXStore = store) -> None:
            await publish(store, history, 1, 1, 7)
            await store.delete([FileInfo(0, txid, txid, 0) for txid in range(1, 8)])

        storage.requests = 0
        storage.events[request] = compact
        report = await verify(store, quick=quick)
        assert report.problems == (), request


async def test_a_file_that_is_replaced_meanwhile_is_read_as_it_is_now(
    history: History, autojump_clock: trio.testing.MockClock
) -> None:
    larger = make_file({**history.changes[7], 4: page_of(4, 9)}, commit=25, low=8, high=8)

    class Replaced(MemoryStorage):
        async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
            found = await super().list(prefix, start_after=start_after)
            await self.put(found[-1].key, larger)
            return found

    store = memory_store(Replaced())
    infos = await fill(store, history, *l0(1, 8))
    report = await verify(store)
    assert (report.problems, report.size) == ((), sum(info.size for info in infos[:7]) + len(larger))


async def test_a_file_that_is_listed_but_never_there_is_an_error(
    history: History, autojump_clock: trio.testing.MockClock
) -> None:
    class Ghost(MemoryStorage):
        async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
            found = await super().list(prefix, start_after=start_after)
            return [*found, ObjectInfo("0001/0000000000000001-0000000000000003.ltx", 500, 0)]

    store = memory_store(Ghost())
    await fill(store, history, *l0(1, 2))
    problem = only(await verify(store))
    assert (problem.what, problem.lost) == ("is listed, but does not exist", (3, 3))


async def test_a_gap_that_the_next_listing_does_not_have_is_none(
    history: History, autojump_clock: trio.testing.MockClock
) -> None:
    class Late(MemoryStorage):
        lists = 0

        async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
            found = await super().list(prefix, start_after=start_after)
            self.lists += 1
            return found[1:] if self.lists == 1 else found

    store = memory_store(Late())
    await fill(store, history, *l0(1, 8))
    assert (await verify(store)).problems == ()


# --- reading ---------------------------------------------------------------------------------


async def test_files_of_many_pieces_are_read_whole_and_told_of(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_stream, "PIECE_BYTES", 100)
    monkeypatch.setattr(file_stream, "FEED_BYTES", 30)
    store = memory_store()
    infos = await fill(store, history, *l0(1, 8), (9, 1, 8))
    told = []

    class Progress:
        def __init__(self, total: int) -> None:
            told.append(-total)

        def __enter__(self) -> Callable[[int], None]:
            return told.append

        def __exit__(self, *exc: object) -> None:
            return None

    report = await verify(store, progress=Progress)
    assert report.problems == ()
    assert -told[0] == sum(told[1:]) == sum(info.size for info in infos)
    key = store.key(infos[4])
    data = bytearray((await store.storage.get(key)).data)
    data[len(data) // 2] ^= 4
    await store.storage.put(key, bytes(data))
    assert only(await verify(store)).key == key


async def test_quick_reads_little_of_large_files_and_finds_what_indexes_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "WHOLE_FILE_LIMIT", 2000)
    monkeypatch.setattr(store_module, "TAIL_READ", 500)
    history = History()
    history.commit(400)
    history.commit(400, *range(1, 300))
    metered = MeteredStorage(MemoryStorage())
    store = memory_store(metered)
    infos = await fill(store, history, *l0(1, 2))
    assert (await verify(store, quick=True)).problems == ()
    read = metered.statistics().by_operation[Operation.GET].bytes_received
    assert 0 < read < sum(info.size for info in infos) / 4
    await put(store, 0, 3, 3, make_file({pgno: page_of(pgno, 3) for pgno in range(1, 402)}, commit=403, low=3, high=3))
    problem = only(await verify(store, quick=True))
    assert "pages 402-403" in problem.what
