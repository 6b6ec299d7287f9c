"""The WAL scanner, against reading the log word by word; and real WALs."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litereplica.errors import WALError
from litereplica.format import wal
from tests.format.builders import PAGE_SIZES, UNTIMED, make_page

Sum = tuple[int, int]


def slow_checksum(data: bytes, state: Sum, order: str) -> Sum:
    s0, s1 = state
    for i in range(0, len(data), 8):
        a, b = struct.unpack_from(order + "II", data, i)
        s0 = (s0 + a + s1) % 2**32
        s1 = (s1 + b + s0) % 2**32
    return s0, s1


def make_wal(
    page_size: int, frames: list[tuple[int, int, bytes]], *, big_endian: bool = False, salts: Sum = (7, 2**32 - 1)
) -> bytes:
    """A whole log of (pgno, commit, page)."""
    order, magic = (">", 0x377F0683) if big_endian else ("<", 0x377F0682)
    header = struct.pack(">6I", magic, 3007000, page_size, 3, *salts)
    state = slow_checksum(header, (0, 0), order)
    log = header + struct.pack(">II", *state)
    for pgno, commit, page in frames:
        head = struct.pack(">II", pgno, commit)
        state = slow_checksum(head + page, state, order)
        log += head + struct.pack(">4I", *salts, *state) + page
    return log


def slow_scan(data: bytes, header: wal.WALHeader, state: Sum) -> list[tuple[int, int, Sum]]:
    order = ">" if header.big_endian else "<"
    found = []
    for start in range(0, len(data) - header.frame_size + 1, header.frame_size):
        pgno, commit, *rest = struct.unpack_from(">6I", data, start)
        page = data[start + 24 : start + header.frame_size]
        state = slow_checksum(data[start : start + 8] + page, state, order)
        if pgno == 0 or rest != [header.salt1, header.salt2, *state]:
            break
        found.append((pgno, commit, state))
    return found


def scan(data: bytes, header: wal.WALHeader, state: Sum) -> list[tuple[int, int, Sum]]:
    frames = wal.scan_frames(data, header=header, previous=state)
    sums = [(int(a), int(b)) for a, b in frames.checksums]
    assert frames.pgno.dtype == frames.commit.dtype == np.uint32
    return list(zip(frames.pgno.tolist(), frames.commit.tolist(), sums, strict=True))


logs = st.builds(
    lambda page_size, big_endian, heads: make_wal(
        page_size,
        [(pgno, commit, make_page(i, page_size)) for i, (pgno, commit) in enumerate(heads)],
        big_endian=big_endian,
    ),
    st.sampled_from([512, 1024, 4096, 65536]),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**32 - 1])), min_size=1, max_size=4),
)


@settings(UNTIMED, max_examples=80)
@given(logs, st.data())
def test_a_damaged_log_is_read_as_word_by_word(log: bytes, data: st.DataObject) -> None:
    header = wal.WALHeader.decode(log)
    body = bytearray(log[wal.HEADER_SIZE :])
    for _ in range(data.draw(st.integers(0, 2))):
        frame = data.draw(st.integers(0, len(body) // header.frame_size - 1)) * header.frame_size
        byte = frame + data.draw(st.one_of(st.integers(0, 31), st.integers(0, header.frame_size - 1)))
        body[byte] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(body)))
    body = body[: data.draw(st.sampled_from([len(body), cut]))]
    expected = slow_scan(bytes(body), header, header.checksum)
    assert scan(bytes(body), header, header.checksum) == expected


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_every_page_size_and_byte_order_is_read_whole_and_on_from_the_middle(page_size: int, big_endian: bool) -> None:
    heads = [(1, 0), (2**32 - 1, 3), (2, 0)]
    log = make_wal(page_size, [(*head, make_page(head[0], page_size)) for head in heads], big_endian=big_endian)
    header = wal.WALHeader.decode(log)
    assert (header.page_size, header.big_endian, header.sequence) == (page_size, big_endian, 3)
    frames = wal.scan_frames(log[32:], header=header, previous=header.checksum)
    assert (frames.pgno.tolist(), frames.commit.tolist(), frames.committed) == ([1, 2**32 - 1, 2], [0, 3, 0], 2)
    rest = log[header.frame_offset(1) :]
    assert scan(rest, header, frames.checksum_after(1)) == slow_scan(log[32:], header, header.checksum)[1:]
    assert scan(rest, header, header.checksum) == []


@pytest.mark.parametrize("big_endian", [False, True])
def test_every_cut_ends_the_run_at_the_last_whole_frame(big_endian: bool) -> None:
    log = make_wal(512, [(i, i, make_page(i)) for i in range(1, 4)], big_endian=big_endian)
    header = wal.WALHeader.decode(log)
    for cut in range(wal.HEADER_SIZE, len(log) + 1):
        body = memoryview(log)[wal.HEADER_SIZE : cut]
        assert len(wal.scan_frames(body, header=header, previous=header.checksum)) == len(body) // 536


def test_every_flipped_bit_ends_the_run_at_its_frame() -> None:
    log = make_wal(512, [(i, 0, make_page(i)) for i in range(1, 3)])
    header = wal.WALHeader.decode(log)
    body = bytearray(log[wal.HEADER_SIZE :])
    for i in range(8 * len(body)):
        body[i // 8] ^= 1 << i % 8
        assert len(wal.scan_frames(bytes(body), header=header, previous=header.checksum)) == i // 8 // 536
        body[i // 8] ^= 1 << i % 8


def test_frames_of_an_earlier_generation_end_the_run() -> None:
    old = make_wal(512, [(i, i, make_page(i)) for i in range(1, 6)], salts=(6, 9))
    new = make_wal(512, [(1, 1, make_page(50))])
    log = new + old[len(new) :]
    header = wal.WALHeader.decode(log)
    assert scan(log[32:], header, header.checksum) == slow_scan(log[32:], header, header.checksum)
    assert len(scan(log[32:], header, header.checksum)) == 1


@pytest.mark.parametrize("damaged", [None, 0, 6, 7, 8, 20])
def test_the_size_of_a_step_does_not_show(damaged: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    log = bytearray(make_wal(512, [(i, 0, make_page(i)) for i in range(1, 22)]))
    header = wal.WALHeader.decode(bytes(log))
    if damaged is not None:
        log[header.frame_offset(damaged) + 100] ^= 1
    monkeypatch.setattr(wal, "_SCAN_CHUNK", 7 * 536)
    assert len(scan(bytes(log[32:]), header, header.checksum)) == (21 if damaged is None else damaged)


@UNTIMED
@given(st.binary(max_size=3000), st.sampled_from([512, 1024]), st.booleans())
def test_garbage_has_no_frames(garbage: bytes, page_size: int, big_endian: bool) -> None:
    header = wal.WALHeader(page_size, 0, 1, 2, (3, 4), big_endian)
    assert scan(garbage, header, (3, 4)) == slow_scan(garbage, header, (3, 4)) == []


def test_a_frame_of_page_0_is_not_valid_even_with_a_right_checksum() -> None:
    log = make_wal(512, [(1, 1, make_page(1)), (0, 2, make_page(2)), (3, 3, make_page(3))])
    header = wal.WALHeader.decode(log)
    assert [pgno for pgno, _, _ in scan(log[32:], header, header.checksum)] == [1]


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"magic": 0x377F0684}, "magic 0x377f0684"),
        ({"version": 3007001}, "version 3007001"),
        ({"page_size": 0}, "page size 0"),
        ({"page_size": 131072}, "page size 131072"),
    ],
)
def test_a_header_of_another_kind_is_refused(patch: dict[str, int], message: str) -> None:
    fields = {"magic": 0x377F0682, "version": 3007000, "page_size": 512} | patch
    words = struct.pack(">6I", *fields.values(), 0, 1, 2)
    header = words + struct.pack(">II", *slow_checksum(words, (0, 0), "<"))
    with pytest.raises(WALError, match=message):
        wal.WALHeader.decode(header)


def test_every_flipped_bit_and_cut_of_a_header_is_refused() -> None:
    header = make_wal(4096, [])
    assert wal.WALHeader.decode(memoryview(header)).salt2 == 2**32 - 1
    for i in range(8 * len(header)):
        damaged = bytearray(header)
        damaged[i // 8] ^= 1 << i % 8
        with pytest.raises(WALError):
            wal.WALHeader.decode(bytes(damaged))
    for size in range(len(header)):
        with pytest.raises(WALError, match="expected 32"):
            wal.WALHeader.decode(header[:size])


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_the_log_of_a_real_database_is_read_to_its_end(page_size: int, tmp_path: Path) -> None:
    script = f"""\
        PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
        CREATE TABLE t(body);
        INSERT INTO t SELECT randomblob(3000) FROM generate_series(1, 20);
        DELETE FROM t WHERE rowid % 2;
        PRAGMA page_count;
.shell cp app.db-wal copy
"""
    done = subprocess.run(
        ["sqlite3", "-bail", "app.db"], input=script, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    log = (tmp_path / "copy").read_bytes()
    header = wal.WALHeader.decode(log)
    found = scan(log[32:], header, header.checksum)
    assert len(found) == len(log[32:]) // header.frame_size == (len(log) - 32) / header.frame_size
    assert found == slow_scan(log[32:], header, header.checksum)
    assert [commit for _, commit, _ in found if commit][-1] == int(done.stdout.split()[-1])
