"""Whole files: what is encoded is decoded, however it arrives; and the checksum, against its definition."""

from __future__ import annotations

import dataclasses
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litereplica.errors import LTXError
from litereplica.format import checksum, decoder, encoder, ltx
from litereplica.testing.ltx_files import encode_file
from litereplica.times import MAX_TIME_MS
from tests.format.builders import (
    UNTIMED,
    CraftedFile,
    Pages,
    block_frame,
    craft,
    decoded,
    encoded,
    files,
    legacy_frame,
    make_header,
    make_page,
    slow_crc64,
)


def fed_in_chunks(data: bytes, sizes: list[int]) -> tuple[ltx.Header, Pages]:
    """Decode `data` in chunks of these sizes, over and over, as views of a buffer that changes behind them."""
    machine, position, i = decoder.Decoder(), 0, 0
    pages: Pages = {}
    while position < len(data):
        buffer = bytearray(data[position : position + sizes[i % len(sizes)]])
        pages |= dict(machine.feed(memoryview(buffer)))
        position += len(buffer)
        buffer[:] = bytes(len(buffer))
        i += 1
    return machine.finish().header, pages


@UNTIMED
@given(files())
def test_decode_returns_what_was_encoded(file: tuple[ltx.Header, Pages]) -> None:
    assert decoded(encoded(file)) == file


@UNTIMED
@given(files())
def test_index_leads_to_each_frame(file: tuple[ltx.Header, Pages]) -> None:
    data = encoded(file)
    index = decoder.decode_file(data).index
    for pgno, page in file[1].items():
        row = index.position(pgno)
        assert row is not None
        frame = data[int(index.offset[row]) :][: int(index.size[row])]
        assert ltx.decode_frame(frame, pgno=pgno, page_size=file[0].page_size) == page
    assert index.position(max(file[1], default=0) + 1) is None


@UNTIMED
@given(files(page_size=512), st.lists(st.integers(1, 2000), min_size=1, max_size=5))
def test_chunks_of_any_size_decode_alike(file: tuple[ltx.Header, Pages], sizes: list[int]) -> None:
    assert fed_in_chunks(encoded(file), sizes) == file


@UNTIMED
@given(st.lists(st.booleans(), min_size=1, max_size=6), st.lists(st.integers(1, 700), min_size=1, max_size=4))
def test_legacy_frames_decode_among_blocks_in_chunks_of_any_size(legacy: list[bool], sizes: list[int]) -> None:
    pages = {pgno: make_page(pgno) for pgno in range(1, len(legacy) + 1)}
    kinds = [legacy_frame if old else block_frame for old in legacy]
    file = CraftedFile(make_header().encode(), [make(*item) for make, item in zip(kinds, pages.items(), strict=True)])
    assert fed_in_chunks(file.build(), sizes) == (make_header(), pages)


def test_every_single_byte_chunk_boundary_is_fine() -> None:
    data = craft().build()
    expected = decoded(data)
    for cut in range(len(data)):
        machine = decoder.Decoder()
        pages = machine.feed(data[:cut]) + machine.feed(b"") + machine.feed(data[cut:])
        assert (machine.finish().header, dict(pages)) == expected


def test_pages_are_returned_by_the_chunk_that_completes_them() -> None:
    file = craft()
    data, machine = file.build(), decoder.Decoder()
    ends = [offset + size for _, offset, size in file.true_entries()]
    seen = {
        position + 1: [pgno for pgno, _ in machine.feed(data[position : position + 1])] for position in range(len(data))
    }
    assert {position: pgnos for position, pgnos in seen.items() if pgnos} == dict(
        zip(ends, [[1], [2], [3]], strict=True)
    )


def test_encoder_writes_what_the_format_says_byte_by_byte() -> None:
    file = craft(pgnos=(2, 3, 9))
    assert encode_file(make_header(), [(pgno, make_page(pgno)) for pgno in (2, 3, 9)]) == file.build()


def test_pages_may_be_views() -> None:
    pages = {pgno: make_page(pgno) for pgno in (1, 2)}
    views = [(pgno, memoryview(bytearray(page))) for pgno, page in pages.items()]
    assert encode_file(make_header(), views) == encode_file(make_header(), pages.items())


def test_a_file_without_pages_is_valid() -> None:
    header = make_header()
    assert decoded(encode_file(header, [])) == (header, {})


@UNTIMED
@given(st.binary(max_size=200), st.integers(0, 200))
def test_checksum_is_crc64_go_iso_and_continues(data: bytes, cut: int) -> None:
    assert checksum.update(checksum.update(None, data[:cut]), data[cut:]) == slow_crc64(data)


@pytest.mark.parametrize(
    ("pgnos", "message"),
    [
        ([2, 1], "page 1 cannot follow page 2"),
        ([1, 1], "page 1 cannot follow page 1"),
        ([0], "page 0 cannot follow page 0"),
        ([11], "page 11 cannot follow page 0 in a database of 10"),
    ],
)
def test_encoder_refuses_pages_out_of_order_or_place(pgnos: list[int], message: str) -> None:
    with pytest.raises(LTXError, match=message):
        encode_file(make_header(), [(pgno, bytes(512)) for pgno in pgnos])


def test_encoder_refuses_a_page_of_another_size() -> None:
    with pytest.raises(LTXError, match="page 1 has 511 bytes, expected 512"):
        encode_file(make_header(), [(1, bytes(511))])


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_encoder_refuses_an_incomplete_snapshot(missing: int) -> None:
    header = make_header(txids=(1, 4), commit=3)
    with pytest.raises(LTXError, match="snapshot has 2 pages, expected 3"):
        encode_file(header, [(pgno, bytes(512)) for pgno in range(1, 4) if pgno != missing])


@pytest.mark.parametrize(("page_size", "lock_pgno"), [(512, 2097153), (4096, 262145), (65536, 16385)])
def test_lock_page_is_left_out_of_files_and_counts(page_size: int, lock_pgno: int) -> None:
    pages = [(pgno, make_page(1, page_size)) for pgno in (lock_pgno - 1, lock_pgno, lock_pgno + 1)]
    header = make_header(commit=lock_pgno + 1, page_size=page_size)
    assert header.lock_pgno == lock_pgno
    assert dataclasses.replace(header, commit=lock_pgno - 1).snapshot_page_count == lock_pgno - 1
    assert dataclasses.replace(header, commit=lock_pgno).snapshot_page_count == lock_pgno - 1
    assert header.snapshot_page_count == lock_pgno
    assert decoded(encode_file(header, [pages[0], pages[2]]))[1] == dict([pages[0], pages[2]])
    with pytest.raises(LTXError, match=f"page {lock_pgno} cannot follow"):
        encode_file(header, pages)
    with pytest.raises(LTXError, match=f"frame of page {lock_pgno} follows page {lock_pgno - 1}"):
        decoder.decode_file(CraftedFile(header.encode(), [block_frame(*page) for page in pages]).build())


def test_snapshot_beyond_the_lock_page_streams_in_little_memory() -> None:
    header = make_header(txids=(1, 1), commit=16387, page_size=65536)
    machine, writer, page = decoder.Decoder(), encoder.Encoder(header), bytes(65536)
    machine.feed(writer.start())
    tracemalloc.start()
    try:
        for pgno in range(1, header.commit + 1):
            if pgno != 16385:
                assert machine.feed(writer.page(pgno, page)) == [(pgno, page)]
        machine.feed(writer.finish())
        index = machine.finish().index
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(index) == 16386
    assert index.position(16385) is None
    assert peak < 8 << 20


def test_index_of_two_million_pages_is_decoded_in_little_more_memory_than_it_takes() -> None:
    n = 2_000_000
    size = np.full(n, 300, np.uint32)
    offset = 100 + np.arange(n, dtype=np.uint64) * np.uint64(300)
    index = ltx.PageIndex(np.arange(1, n + 1, dtype=np.uint32), offset, size)
    varints = ltx.encode_page_index(index)[:-8]
    file_size = 100 + n * 300 + 6 + len(varints) + ltx.TAIL_SIZE
    tracemalloc.start()
    try:
        back = ltx.decode_page_index(varints, header=make_header(commit=n), file_size=file_size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(back.pgno, index.pgno)
    assert np.array_equal(back.offset, index.offset)
    assert np.array_equal(back.size, index.size)
    assert peak < 16 * n + (4 << 20)


@settings(UNTIMED, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_header_survives_with_every_field(seed: int) -> None:
    header = make_header(
        txids=(seed + 1, 2**64 - 1),
        commit=seed % 2**31 + 1,
        wal_offset=2**63 - 1,
        wal_size=seed,
        wal_salt1=seed,
        node_id=2**64 - 1,
    )
    assert ltx.Header.decode(header.encode()) == header


@pytest.mark.parametrize(
    "fields",
    [
        {"timestamp_ms": -1},
        {"timestamp_ms": MAX_TIME_MS + 1},
        {"wal_offset": -1},
        {"wal_offset": 2**63},
        {"wal_offset": 32, "wal_size": -1},
        {"wal_offset": 32, "wal_size": 2**63},
        {"wal_offset": 32, "wal_salt1": 2**32},
        {"wal_offset": 32, "wal_salt2": -1},
        {"wal_salt1": 1},
        {"node_id": 2**64},
        {"page_size": 513},
        {"page_size": 131072},
        {"commit": 0},
        {"commit": 2**32 - 1},
        {"txids": (0, 1)},
        {"txids": (3, 2)},
        {"txids": (3, 2**64)},
    ],
    ids=str,
)
def test_header_with_an_impossible_field_is_not_encoded(fields: dict[str, Any]) -> None:
    with pytest.raises(LTXError, match="LTX header has"):
        make_header(**fields).encode()
