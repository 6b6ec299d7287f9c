"""Files that someone made wrong on purpose: each is refused, by name of what is wrong with it.

All have a right checksum unless the checksum is what is wrong, so that no check is saved by the last one.
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from litereplica.errors import LTXError
from litereplica.format import decoder, ltx
from tests.format.builders import (
    CraftedFile,
    Frame,
    block_frame,
    craft,
    legacy_frame,
    legacy_payload,
    make_header,
    make_page,
    slow_uvarint,
)

Edit = Callable[[CraftedFile], object]

PAGE = make_page(2)
RIGHT_ENTRIES = craft().true_entries()


def header_field(offset: int, fmt: str, value: int) -> Edit:
    def edit(file: CraftedFile) -> None:
        header = bytearray(file.header)
        struct.pack_into(fmt, header, offset, value)
        file.header = bytes(header)

    return edit


def second_frame(frame: Frame) -> Edit:
    """The frame in the place of page 2's."""

    def edit(file: CraftedFile) -> None:
        file.frames[1] = frame

    return edit


def pages(*pgnos: int) -> Edit:
    def edit(file: CraftedFile) -> None:
        file.frames = [block_frame(pgno, make_page(pgno)) for pgno in pgnos]

    return edit


def entry(row: int, *, pgno: int = 0, offset: int = 0, size: int = 0) -> Edit:
    """An index whose entry in this row is off by these amounts, modulo 2⁶⁴."""

    def edit(file: CraftedFile) -> None:
        file.entries = list(RIGHT_ENTRIES)
        old = file.entries[row]
        file.entries[row] = ((old[0] + pgno) % 2**64, (old[1] + offset) % 2**64, (old[2] + size) % 2**64)

    return edit


def moved_boundary(file: CraftedFile) -> None:
    """An index without overlap or gap, whose second frame ends a byte early and whose third begins there."""
    first, (page2, offset2, size2), (page3, offset3, size3) = RIGHT_ENTRIES
    file.entries = [first, (page2, offset2, size2 - 1), (page3, offset3 - 1, size3 + 1)]


def attribute(name: str, value: object) -> Edit:
    return lambda file: setattr(file, name, value)


def patched(patch: Callable[[bytes], bytes]) -> Edit:
    return lambda file: file.patches.append(patch)


def raw_varints(entries: list[tuple[int, int, int]]) -> bytes:
    return b"".join(slow_uvarint(value) for item in entries for value in item)


def lz4_frame(flags: int, *body: bytes) -> bytes:
    """An LZ4 frame of the right magic with these flags; its header checksum is not right."""
    return struct.pack("<IBBB", 0x184D2204, flags, 0x40, 0) + b"".join(body)


WIDE_OFFSET = [(1, 100, 522), (2, 622, 2**64 - 522), (3, 100, 522)]

HOSTILE: dict[str, tuple[Edit, str]] = {
    # header
    "another magic": (header_field(0, ">I", 0x4C545832), "not an LTX file"),
    "unknown header flag": (header_field(4, ">I", 0x6), "unknown flags 0x6"),
    "tracked checksums": (header_field(4, ">I", 0), "tracks database checksums"),
    "page size 0": (header_field(8, ">I", 0), "page size 0"),
    "page size 2³¹": (header_field(8, ">I", 2**31), "page size 2147483648"),
    "page size 768": (header_field(8, ">I", 768), "page size 768"),
    "commit 0": (header_field(12, ">I", 0), "a database of 0 pages"),
    "commit 2³²-1": (header_field(12, ">I", 2**32 - 1), "a database of 4294967295 pages"),
    "min TXID 0": (header_field(16, ">Q", 0), "TXIDs 0-2"),
    "min above max": (header_field(16, ">Q", 3), "TXIDs 3-2"),
    "negative timestamp": (header_field(32, ">q", -1), "timestamp -1 ms"),
    "timestamp beyond the calendar": (header_field(32, ">q", 2**62), "timestamp 4611686018427387904 ms"),
    "pre-apply checksum": (header_field(40, ">Q", 2**63), "pre-apply checksum"),
    "negative WAL offset": (header_field(48, ">q", -1), "WAL offset -1"),
    "negative WAL size": (header_field(56, ">q", -(2**63)), "size -9223372036854775808"),
    "salt without WAL": (header_field(64, ">I", 1), "salt without a WAL offset"),
    "commit below the pages": (header_field(12, ">I", 2), "frame of page 3 follows page 2, database has 2"),
    # frames
    "descending pages": (pages(1, 3, 2), "frame of page 2 follows page 3"),
    "a page twice": (pages(1, 2, 2), "frame of page 2 follows page 2"),
    "page beyond the commit": (pages(1, 11), "frame of page 11 follows page 1, database has 10"),
    "page 2³²-1": (pages(1, 2**32 - 1), "frame of page 4294967295 follows page 1"),
    "incomplete snapshot": (header_field(16, ">Q", 1), "snapshot has 3 pages, expected 10"),
    "unknown frame flag": (second_frame(block_frame(2, PAGE, flags=3)), "unknown flags 0x3"),
    "end mark with flags": (attribute("end", bytes(5) + b"\1"), "page 0 has flags 0x1"),
    "frame size 0": (second_frame(block_frame(2, PAGE, claim=0)), "claims 0 bytes for a page of 512"),
    "frame size 2³²-1": (second_frame(block_frame(2, PAGE, claim=2**32 - 1)), "claims 4294967295 bytes"),
    "frame size above the bound": (second_frame(block_frame(2, PAGE, payload=bytes(600))), "claims 600 bytes"),
    "payload is no LZ4": (second_frame(block_frame(2, PAGE, payload=b"\xff" * 90)), "page 2 is not a valid LZ4 block"),
    "page too short": (second_frame(block_frame(2, PAGE[:-1])), "holds 511 bytes, expected 512"),
    "page too long": (second_frame(block_frame(2, bytes(513))), "page 2 is not a valid LZ4 block"),
    "LZ4 bomb": (second_frame(block_frame(2, bytes(100_000))), "page 2 is not a valid LZ4 block"),
    "empty LZ4 block": (second_frame(block_frame(2, b"")), "holds 0 bytes"),
    # legacy frames
    "legacy frame without magic": (second_frame(legacy_frame(2, PAGE, payload=bytes(600))), "not a valid LZ4 frame"),
    "legacy page too short": (second_frame(legacy_frame(2, PAGE[:-1])), "holds 511 bytes, expected 512"),
    "legacy page too long": (second_frame(legacy_frame(2, PAGE + b"x")), "holds 513 bytes, expected 512"),
    "legacy bomb": (second_frame(legacy_frame(2, bytes(100_000))), "holds 513 or more bytes, expected 512"),
    "legacy empty": (second_frame(legacy_frame(2, b"")), "holds 0 bytes, expected 512"),
    "legacy content checksum": (
        second_frame(legacy_frame(2, PAGE, payload=legacy_payload(PAGE)[:-1] + b"\0")),
        "page 2 is not a valid LZ4 frame",
    ),
    "legacy false content size": (
        second_frame(
            legacy_frame(
                2,
                PAGE,
                payload=legacy_payload(PAGE, store_size=True).replace(b"\0\2" + bytes(6), b"\1\2" + bytes(6), 1),
            )
        ),
        "page 2 is not a valid LZ4 frame",
    ),
    "legacy dictionary": (second_frame(legacy_frame(2, PAGE, payload=lz4_frame(0x61, bytes(600)))), "not a valid LZ4"),
    "legacy other version": (second_frame(legacy_frame(2, PAGE, payload=lz4_frame(0xA0, bytes(9)))), "not a valid LZ4"),
    "legacy skippable frame": (
        second_frame(
            legacy_frame(2, PAGE, payload=struct.pack("<II", 0x184D2A50, 4) + bytes(4) + legacy_payload(PAGE))
        ),
        "not a valid LZ4 frame",
    ),
    "legacy block of 2 GiB": (
        second_frame(legacy_frame(2, PAGE, payload=lz4_frame(0x60, struct.pack("<I", 2**31 - 1), bytes(99)))),
        "claims 2147483658 bytes for a page of 512",
    ),
    "legacy thousand tiny blocks": (
        second_frame(legacy_frame(2, PAGE, payload=lz4_frame(0x60, struct.pack("<IB", 2**31 + 1, 7) * 1000, bytes(4)))),
        "bytes for a page of 512",
    ),
    "two legacy frames in one": (
        second_frame(legacy_frame(2, PAGE, payload=legacy_payload(PAGE[:256]) + legacy_payload(PAGE[256:]))),
        "holds 256 bytes, expected 512",
    ),
    # index
    "index length 2⁶³": (attribute("index_size", 2**63), "claims 9223372036854775808 bytes"),
    "index length -256": (attribute("index_size", 2**64 - 256), "claims 18446744073709551360 bytes"),
    "index longer than the file": (attribute("index_size", 10_000), "claims 10000 bytes in a file of"),
    "index length 0": (attribute("index_size", 0), "claims 0 bytes"),
    "index as long as the frames": (attribute("index_size", 1000), "does not fill the space"),
    "index one byte short": (attribute("index_size", len(raw_varints(RIGHT_ENTRIES))), "does not fill the space"),
    "index without its end": (attribute("varints", raw_varints(RIGHT_ENTRIES)), "whole entries"),
    "index ends within a varint": (attribute("varints", raw_varints(RIGHT_ENTRIES) + b"\x80"), "ends within a varint"),
    "index with two ends": (attribute("varints", raw_varints(RIGHT_ENTRIES) + b"\0\0"), "whole entries"),
    "empty index": (attribute("entries", []), "index is empty, but the file has frames"),
    "varint of 70 bits": (attribute("varints", b"\xff" * 10 + b"\1" + b"\0" * 3), "more than 64 bits"),
    "varint of 65 bits": (attribute("varints", b"\xff" * 9 + b"\2" + b"\1\1\0"), "more than 64 bits"),
    "index names another page": (entry(2, pgno=1), "does not agree with the frames"),
    "index page 2³² more": (entry(1, pgno=2**32), "not ascending"),
    "index page 0": (entry(0, pgno=-1), "not ascending"),
    "index descending": (attribute("entries", [RIGHT_ENTRIES[i] for i in (1, 0, 2)]), "not ascending"),
    "frames overlap": (entry(1, offset=-1), "overlap, leave gaps, or lie outside"),
    "frames leave a gap": (entry(1, offset=1), "overlap, leave gaps, or lie outside"),
    "frame before the header's end": (entry(0, offset=-1), "overlap, leave gaps, or lie outside"),
    "frame far outside": (entry(2, offset=2**63), "overlap, leave gaps, or lie outside"),
    "offset that wraps round": (attribute("entries", WIDE_OFFSET), "impossible size"),
    "frame of 2⁶⁴-1 bytes": (entry(2, size=-1 - RIGHT_ENTRIES[2][2]), "impossible size"),
    "frame of 2³² bytes more": (entry(1, size=2**32), "impossible size"),
    "frame of 6 bytes": (entry(1, size=6 - RIGHT_ENTRIES[1][2]), "impossible size"),
    "frame one byte longer": (entry(2, size=1), "overlap, leave gaps, or lie outside"),
    "index moves a boundary": (moved_boundary, "does not agree with the frames"),
    "index leaves a page out": (attribute("entries", RIGHT_ENTRIES[:2]), "overlap, leave gaps, or lie outside"),
    # trailer
    "cut within a frame": (patched(lambda data: data[:300]), "ends after 300 bytes: truncated"),
    "post-apply checksum": (attribute("post_apply", 2**63 + 1), "post-apply checksum"),
    "checksum without bit 63": (attribute("checksum", 12345), "without bit 63"),
    "another checksum": (attribute("checksum", 2**63 + 12345), "checksum is 8000000000003039, computed"),
    "a byte more": (patched(lambda data: data + b"\0"), "LTX"),
    "a megabyte more": (patched(lambda data: data + bytes(1 << 20)), "more than 115 bytes after its 3 frames"),
    "twice the file": (patched(lambda data: data + data), "more than 115 bytes after its 3 frames"),
}


def test_the_file_that_is_made_hostile_is_valid() -> None:
    assert len(decoder.decode_file(craft().build()).pages) == 3


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused(name: str) -> None:
    edit, message = HOSTILE[name]
    file = craft()
    edit(file)
    data = file.build()
    tracemalloc.start()
    try:
        with pytest.raises(LTXError, match=message):
            decoder.decode_file(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(data) + (256 << 10)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_byte_by_byte(name: str) -> None:
    edit, _ = HOSTILE[name]
    file = craft()
    edit(file)
    data, machine = file.build()[:4096], decoder.Decoder()

    def feed_all() -> None:
        for i in range(len(data)):
            machine.feed(data[i : i + 1])
        machine.finish()

    with pytest.raises(LTXError):
        feed_all()


@pytest.mark.parametrize("size", [0, 1, 99, 100, 105, 106, 123, 130])
@pytest.mark.parametrize("content", [craft().build(), bytes(200), b"LTX1" * 50], ids=["cut", "zeroes", "magics"])
def test_short_objects_are_refused(content: bytes, size: int) -> None:
    data = content[:size]
    with pytest.raises(LTXError):
        decoder.decode_file(data)
    with pytest.raises(LTXError):
        ltx.decode_index_size(data[-ltx.TAIL_SIZE :], file_size=len(data))
    with pytest.raises(LTXError):
        ltx.decode_trailer(data[-ltx.TRAILER_SIZE :][:-1])


# What a ranged read gets: one frame, without the checksum of the file.
FRAME = block_frame(2, PAGE).written
LEGACY = legacy_frame(2, PAGE).written


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "has 6 bytes or more, its index says 0"),
        (FRAME[:6], "has 10 bytes or more, its index says 6"),
        (FRAME[:9], "has 10 bytes or more, its index says 9"),
        (FRAME[:10], "or more, its index says 10"),
        (FRAME[:-1], "or more, its index says"),
        (FRAME + b"\0", "or more, its index says"),
        (FRAME + FRAME, "or more, its index says"),
        (LEGACY[:6], "has 11 bytes or more, its index says 6"),
        (LEGACY[:-1], "or more, its index says"),
        (LEGACY + b"\0", "or more, its index says"),
        (bytes(6), "labelled page 0"),
        (block_frame(3, PAGE).written, "frame of page 2 is labelled page 3"),
        (legacy_frame(3, PAGE).written, "frame of page 2 is labelled page 3"),
        (block_frame(2, PAGE * 2, claim=2**31).written, "claims 2147483648 bytes"),
    ],
)
def test_a_frame_that_is_not_what_its_index_says_is_refused(frame: bytes, message: str) -> None:
    with pytest.raises(LTXError, match=message):
        ltx.decode_frame(frame, pgno=2, page_size=512)


# What a ranged read gets of an index: its varints and the file's size, and no frame to compare with.
INDEX_CASES: dict[str, tuple[list[tuple[int, int, int]], dict[str, Any], str]] = {
    "first frame within the header": ([(1, 99, 526), *RIGHT_ENTRIES[1:]], {}, "overlap, leave gaps, or lie outside"),
    "last frame within the end": ([*RIGHT_ENTRIES[:2], (3, 1150, 526)], {}, "overlap, leave gaps, or lie outside"),
    "page beyond the commit": (RIGHT_ENTRIES, {"commit": 2}, "not ascending within 1..2"),
    "lock page": (
        [(16384, 100, 525), (16385, 625, 525), (16386, 1150, 525)],
        {"page_size": 65536, "commit": 20_000},
        "the lock page",
    ),
    "incomplete snapshot": (RIGHT_ENTRIES, {"txids": (1, 2)}, "snapshot has 3 pages, expected 10"),
    "no pages in a snapshot": ([], {"txids": (1, 2)}, "snapshot has 0 pages, expected 10"),
}


@pytest.mark.parametrize("name", INDEX_CASES)
def test_a_hostile_index_is_refused_without_its_frames(name: str) -> None:
    entries, fields, message = INDEX_CASES[name]
    header = make_header(**fields)
    varints = raw_varints(entries) + b"\0"
    with pytest.raises(LTXError, match=message):
        ltx.decode_page_index(varints, header=header, file_size=1675 + 6 + len(varints) + ltx.TAIL_SIZE)


def test_an_index_that_does_not_end_with_zero_is_refused() -> None:
    with pytest.raises(LTXError, match="does not end with a zero"):
        ltx.decode_page_index(raw_varints(RIGHT_ENTRIES) + b"\1", header=make_header(), file_size=1722)


def test_a_frame_may_claim_what_its_page_can_need_and_no_more() -> None:
    most = ltx.max_frame_size(512)
    head = struct.pack(">IH", 2, 1)
    assert ltx.least_frame_size(head + struct.pack(">I", most - 10), page_size=512) == most
    with pytest.raises(LTXError, match=f"claims {most - 9} bytes"):
        ltx.least_frame_size(head + struct.pack(">I", most - 9), page_size=512)


@pytest.mark.parametrize("file_size", [0, 99, 131, 500, 2**63])
def test_an_index_of_another_file_is_refused(file_size: int) -> None:
    varints = raw_varints(RIGHT_ENTRIES) + b"\0"
    with pytest.raises(LTXError):
        ltx.decode_page_index(varints, header=make_header(), file_size=file_size)


def test_bytes_and_views_are_read_alike() -> None:
    data = craft().build()
    for source in (data, memoryview(data), memoryview(bytearray(data))):
        assert decoder.decode_file(source).pages == [make_page(pgno) for pgno in (1, 2, 3)]
        assert ltx.Header.decode(source) == make_header()
    assert ltx.decode_frame(memoryview(LEGACY), pgno=2, page_size=512) == PAGE
    assert ltx.decode_frame(memoryview(bytearray(FRAME)), pgno=2, page_size=512) == PAGE
