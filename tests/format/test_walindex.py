"""The wal-index, against that of SQLite itself and against entering frames one by one."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from litereplica.format import wal, walindex
from litereplica.format.walindex import BLOCK_SIZE, IndexHeader, Patch, WalIndex
from tests.format.builders import UNTIMED

# The application: in a process of its own, it holds the database open until its input ends.
APPLICATION = """
import sqlite3, sys
db = sqlite3.connect("app.db", isolation_level=None)
db.execute("PRAGMA page_size=512")
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA wal_autocheckpoint=0")
db.execute("PRAGMA cache_size=100000")
db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, body)")
for n in range(80):
    db.execute("BEGIN")
    db.executemany("INSERT INTO t(body) VALUES (randomblob(400))", [()] * 120)
    db.execute("UPDATE t SET body = randomblob(399) WHERE abs(random()) % 5 = 0 AND id > ?", (120 * n,))
    db.execute("UPDATE t SET body = 'hot' WHERE id = 1")
    db.execute("COMMIT")
print(db.execute("PRAGMA page_count").fetchone()[0], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """The `-wal` and `-shm` of a database with more than two hash blocks."""
    directory = tmp_path_factory.mktemp("real")
    with subprocess.Popen(
        [sys.executable, "-c", APPLICATION], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 4000
        return (directory / "app.db-wal").read_bytes(), (directory / "app.db-shm").read_bytes()


def pgnos_of(log: bytes) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    header = wal.WALHeader.decode(log)
    frames = wal.scan_frames(log[wal.HEADER_SIZE :], header=header, previous=header.checksum)
    return frames.pgno, frames.commit


def make_index() -> WalIndex:
    return WalIndex(page_size=512, commit=1, salt1=1, salt2=2)


def slow_index(pgnos: list[int]) -> bytes:
    """The hash blocks after entering frame by frame, as wal.c does it."""
    data = bytearray()
    for number, pgno in enumerate(pgnos):
        block = (number + 34) // 4096
        if len(data) < (block + 1) * BLOCK_SIZE:
            data += bytes(BLOCK_SIZE)
        first = 136 if block == 0 else block * BLOCK_SIZE
        entry = number + 1 if block == 0 else number - 4062 - (block - 1) * 4096 + 1
        struct.pack_into("=I", data, first + 4 * (entry - 1), pgno)
        slot = pgno * 383 % 8192
        while struct.unpack_from("=H", data, block * BLOCK_SIZE + 16384 + 2 * slot) != (0,):
            slot = (slot + 1) % 8192
        struct.pack_into("=H", data, block * BLOCK_SIZE + 16384 + 2 * slot, entry)
    return bytes(data[136:])


def newest(pgnos: list[int], pgno: int, max_frame: int) -> int:
    return max((frame for frame in range(1, max_frame + 1) if pgnos[frame - 1] == pgno), default=0)


# --- SQLite itself ---------------------------------------------------------------------------


def test_hash_blocks_are_those_of_sqlite_byte_for_byte(real: tuple[bytes, bytes]) -> None:
    log, shm = real
    pgnos, _ = pgnos_of(log)
    index = make_index()
    index.append(pgnos)
    assert len(pgnos) > 4062 + 4096
    assert len(shm) == len(index.data)
    assert index.data[136:] == shm[136:]


def test_appending_transaction_by_transaction_makes_the_same_blocks(real: tuple[bytes, bytes]) -> None:
    log, shm = real
    pgnos, commit = pgnos_of(log)
    index, start = make_index(), 0
    for end in (np.flatnonzero(commit) + 1).tolist():
        index.append(pgnos[start:end])
        index.publish(max_frame=end, commit=int(commit[end - 1]))
        start = end
    assert index.data[136:] == shm[136:]


def test_header_is_that_of_sqlite_but_for_the_frame_checksum_that_we_leave_out(real: tuple[bytes, bytes]) -> None:
    log, shm = real
    version, _, change, is_init, big_endian, page_size, max_frame, commit = struct.unpack_from("=IIIBBHII", shm)
    salts = struct.unpack_from("=II", shm, 32)
    ours = IndexHeader(
        page_size=page_size, max_frame=max_frame, commit=commit, change=change, salt1=salts[0], salt2=salts[1]
    ).encode()
    theirs = shm[:48]
    assert theirs == shm[48:96]
    assert (version, is_init, big_endian) == (3007000, 1, sys.byteorder == "big")
    assert (
        struct.pack("=II", *wal.checksum_words(theirs[:40], (0, 0), big_endian=sys.byteorder == "big")) == theirs[40:]
    )
    without = theirs[:24] + bytes(8) + theirs[32:40]
    assert ours == without + struct.pack("=II", *wal.checksum_words(without, (0, 0), big_endian=sys.byteorder == "big"))
    pgnos, commits = pgnos_of(log)
    assert (max_frame, commit) == (len(pgnos), commits[-1])


def test_find_is_the_newest_frame_in_the_log(real: tuple[bytes, bytes]) -> None:
    pgnos, _ = pgnos_of(real[0])
    index, frames = make_index(), pgnos.tolist()
    index.append(pgnos)
    for max_frame in (1, 4061, 4062, 4063, 8158, 8159, len(frames)):
        for pgno in {*frames[:20], *frames[max_frame - 5 : max_frame], max(frames), max(frames) + 1}:
            assert index.find(pgno, max_frame=max_frame) == newest(frames, pgno, max_frame)


def test_page_size_65536_is_stored_as_1() -> None:
    header = IndexHeader(page_size=65536, max_frame=0, commit=1, change=1, salt1=1, salt2=2).encode()
    assert struct.unpack_from("=H", header, 14) == (1,)


# --- entering frames one by one --------------------------------------------------------------

few_pages = st.lists(st.integers(1, 6), max_size=300)
colliding = st.lists(st.integers(0, 40).map(lambda n: 1 + 8192 * (n % 5) + n // 5), max_size=300)
any_pages = st.lists(st.integers(1, 2**32 - 2), max_size=300)


@settings(UNTIMED, max_examples=60)
@given(st.one_of(few_pages, colliding, any_pages), st.integers(0, 4200), st.lists(st.integers(0, 300), max_size=4))
def test_append_in_any_pieces_is_entering_one_by_one(pgnos: list[int], before: int, cuts: list[int]) -> None:
    pgnos = [*range(1, before + 1), *pgnos]
    index = make_index()
    edges = sorted({0, len(pgnos), *(min(before + cut, len(pgnos)) for cut in cuts)})
    for start, end in pairwise(edges):
        index.append(np.array(pgnos[start:end], np.uint32))
    expected = slow_index(pgnos)
    assert index.data[136 : 136 + len(expected)] == expected
    for pgno in {*pgnos[-5:], 8193}:
        assert index.find(pgno, max_frame=len(pgnos)) == newest(pgnos, pgno, len(pgnos))


def test_slots_go_round_at_the_end_of_the_table() -> None:
    last = next(pgno for pgno in range(1, 8193) if pgno * 383 % 8192 == 8191)
    pgnos = [last] * 5
    index = make_index()
    for pgno in pgnos:
        index.append(np.array([pgno], np.uint32))
    assert index.data[136:] == slow_index(pgnos)
    assert [index.find(last, max_frame=frame) for frame in range(6)] == [0, 1, 2, 3, 4, 5]


def test_a_full_block_loses_no_frame() -> None:
    rng = np.random.default_rng(5)
    pgnos = rng.integers(1, 3000, 4062 + 4096, dtype=np.uint32)
    index = make_index()
    index.append(pgnos)
    assert index.data[136:] == slow_index(pgnos.tolist())
    for base, count in ((0, 4062), (BLOCK_SIZE, 4096)):
        slots = np.frombuffer(bytes(index.data), np.uint16, 8192, base + 16384)
        assert sorted(slots[slots > 0].tolist()) == list(range(1, count + 1))


# --- what readers see ------------------------------------------------------------------------


def apply(target: bytearray, patches: list[Patch]) -> None:
    for offset, data in patches:
        if len(target) < offset + len(data):
            target.extend(bytes(offset + len(data) - len(target)))
        target[offset : offset + len(data)] = data


@UNTIMED
@given(st.lists(st.tuples(st.lists(st.integers(1, 50), max_size=30), st.booleans()), max_size=6), st.integers(0, 4100))
def test_patches_carry_a_copy_along(steps: list[tuple[list[int], bool]], before: int) -> None:
    index = make_index()
    copy = bytearray(index.data)
    for pgnos, restart in [(list(range(1, before + 1)), False), *steps]:
        apply(copy, index.append(np.array(pgnos, np.uint32)))
        apply(copy, index.publish(max_frame=index.entered, commit=60))
        apply(copy, index.set_mark(2, index.entered))
        apply(copy, index.set_backfilled(index.entered))
        if restart:
            apply(copy, index.restart())
        assert copy == index.data


def test_publish_stores_the_second_copy_of_the_header_first() -> None:
    index = make_index()
    index.append(np.array([1], np.uint32))
    patches = index.publish(max_frame=1, commit=1)
    assert [(patch.offset, len(patch.data)) for patch in patches] == [(48, 48), (0, 48)]
    assert patches[0].data == patches[1].data == index.data[:48]


def test_appended_frames_are_not_published_and_a_second_append_follows_the_first() -> None:
    index = make_index()
    header = bytes(index.data[:96])
    index.append(np.array([5], np.uint32))
    index.append(np.array([6], np.uint32))
    assert index.data[:96] == header
    assert (index.find(5, max_frame=2), index.find(6, max_frame=2)) == (1, 2)


def test_restart_begins_at_frame_1_with_a_new_salt_and_an_empty_block() -> None:
    index = make_index()
    index.append(np.arange(1, 4100, dtype=np.uint32))
    index.publish(max_frame=4099, commit=5000)
    before = index.header
    index.restart()
    assert (index.header.max_frame, index.header.salt1, index.header.commit) == (0, before.salt1 + 1, before.commit)
    assert index.header.change == before.change + 1
    assert (index.backfilled, index.marks) == (0, [0, 0, *[walindex.MARK_NOT_USED] * 3])
    index.append(np.array([9], np.uint32))
    assert index.data[136:BLOCK_SIZE] == slow_index([9])
    assert index.find(1, max_frame=1) == 0


def test_checkpoint_info_lies_where_sqlite_has_it() -> None:
    index = make_index()
    index.append(np.array([1, 2], np.uint32))
    index.publish(max_frame=2, commit=2)
    index.set_mark(3, 2)
    index.set_backfilled(1)
    unused = walindex.MARK_NOT_USED
    assert struct.unpack_from("=I5I8xII", index.data, 96) == (1, 0, 0, unused, 2, unused, 1, 0)


@pytest.mark.parametrize("pages", [1, 3, 4096], ids=["one page", "three pages", "many pages"])
def test_single_appends_stay_cheap_however_long_the_chain(pages: int) -> None:
    index = make_index()
    pgnos = (np.arange(4000, dtype=np.uint32) % pages) + 1
    best = float("inf")
    for start in range(0, 4000, 500):
        begun = time.perf_counter()
        for i in range(start, start + 500):
            index.append(pgnos[i : i + 1])
        best = min(best, (time.perf_counter() - begun) / 500) if start else best
    assert best < 200e-6  # 10 µs on an idle machine; passing a chain of 2,000 slots one by one takes more
