"""LTX files made by hand, and the slow ways of reading and folding them that the fast ones are compared with.

`CraftedFile` writes the format from its description alone, byte by byte, so that each part can be made wrong; its
checksum is right for whatever it holds, unless a test sets another.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lz4.block
import lz4.frame
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from litereplica.format import decoder, ltx
from litereplica.testing.ltx_files import encode_file
from litereplica.times import MAX_TIME_MS

GOLDEN = Path(__file__).parent / "golden"
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For every property: a busy machine is no failure."""

PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]

Pages = dict[int, bytes]


def make_header(*, txids: tuple[int, int] = (2, 2), commit: int = 10, page_size: int = 512, **more: Any) -> ltx.Header:
    fields = {"timestamp_ms": 1_700_000_000_000} | more
    return ltx.Header(page_size=page_size, commit=commit, min_txid=txids[0], max_txid=txids[1], **fields)


def make_page(seed: int, page_size: int = 512) -> bytes:
    """A page that LZ4 cannot shrink."""
    return random.Random(seed).randbytes(page_size)


def golden_file(page_size: int, txid: int) -> bytes:
    return (GOLDEN / str(page_size) / "ltx/0" / f"{txid:016x}-{txid:016x}.ltx").read_bytes()


# --- slow twins ------------------------------------------------------------------------------


def slow_uvarint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def slow_uvarints(data: bytes) -> list[int] | None:
    """The values, or None when `data` is not a run of whole varints of at most 64 bits."""
    values, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift > 63 or value >= 1 << 64:
                return None
            values.append(value)
            value, shift = 0, 0
        else:
            shift += 7
    return values if values and not data[-1] & 0x80 else None


def slow_crc64(data: bytes) -> int:
    crc = 0xFFFFFFFFFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xD800000000000000 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFFFFFFFFFF


def fold(files: Iterable[tuple[ltx.Header, Pages]]) -> tuple[Pages, int]:
    """(pages, commit) after applying the files one by one, by the rule for readers."""
    pages: Pages = {}
    commit = 0
    for header, changed in files:
        commit = header.commit
        pages = {pgno: page for pgno, page in (pages | changed).items() if pgno <= commit}
    return pages, commit


def decoded(data: bytes) -> tuple[ltx.Header, Pages]:
    file = decoder.decode_file(data)
    return file.header, dict(zip(file.index.pgno.tolist(), file.pages, strict=True))


def database(pages: Pages, commit: int, page_size: int) -> bytes:
    return b"".join(pages.get(pgno, bytes(page_size)) for pgno in range(1, commit + 1))


# --- files by hand ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it is written, and its bytes as the checksum sees them."""

    pgno: int
    written: bytes
    summed: bytes


def block_frame(
    pgno: int, page: bytes, *, flags: int = 1, payload: bytes | None = None, claim: int | None = None
) -> Frame:
    if payload is None:
        payload = lz4.block.compress(page, store_size=False)
    head = struct.pack(">IHI", pgno, flags, len(payload) if claim is None else claim)
    return Frame(pgno, head + payload, head + page)


def legacy_payload(page: bytes, **options: object) -> bytes:
    """As older writers made it: one independent block of at most 64 KiB, a content checksum, no content size."""
    settings: dict[str, object] = {"block_size": lz4.frame.BLOCKSIZE_MAX64KB, "block_linked": False}
    return bytes(lz4.frame.compress(page, **(settings | {"content_checksum": True, "store_size": False} | options)))


def legacy_frame(pgno: int, page: bytes, *, payload: bytes | None = None, flags: int = 0) -> Frame:
    head = struct.pack(">IH", pgno, flags)
    return Frame(pgno, head + (legacy_payload(page) if payload is None else payload), head + page)


@dataclass
class CraftedFile:
    """An LTX file; whatever is None is computed to be right."""

    header: bytes
    frames: list[Frame]
    end: bytes = bytes(6)
    entries: list[tuple[int, int, int]] | None = None
    varints: bytes | None = None
    index_size: int | None = None
    post_apply: int = 0
    checksum: int | None = None
    patches: list[Callable[[bytes], bytes]] = field(default_factory=list)

    def true_entries(self) -> list[tuple[int, int, int]]:
        entries, offset = [], len(self.header)
        for frame in self.frames:
            entries.append((frame.pgno, offset, len(frame.written)))
            offset += len(frame.written)
        return entries

    def build(self) -> bytes:
        varints = self.varints
        if varints is None:
            entries = self.true_entries() if self.entries is None else self.entries
            varints = b"".join(slow_uvarint(value) for entry in entries for value in entry) + b"\0"
        size = len(varints) if self.index_size is None else self.index_size
        tail = self.end + varints + struct.pack(">QQ", size, self.post_apply)
        checksum = self.checksum
        if checksum is None:
            summed = b"".join(frame.summed for frame in self.frames)
            checksum = slow_crc64(self.header + summed + tail) | 1 << 63
        data = self.header + b"".join(frame.written for frame in self.frames) + tail + struct.pack(">Q", checksum)
        for patch in self.patches:
            data = patch(data)
        return data


def craft(header: ltx.Header | None = None, pgnos: Iterable[int] = (1, 2, 3)) -> CraftedFile:
    """A valid file with these pages."""
    header = header or make_header()
    frames = [block_frame(pgno, make_page(pgno, header.page_size)) for pgno in pgnos]
    return CraftedFile(header.encode(), frames)


# --- strategies ------------------------------------------------------------------------------


@st.composite
def page_bytes(draw: st.DrawFn, page_size: int) -> bytes:
    kind = draw(st.sampled_from(["random", "repeated", "mixed"]))
    seed = draw(st.integers(0, 1000))
    if kind == "random":
        return make_page(seed, page_size)
    repeated = bytes([seed % 256]) * page_size
    return repeated if kind == "repeated" else make_page(seed, page_size // 4) + repeated[page_size // 4 :]


@st.composite
def files(draw: st.DrawFn, *, snapshot: bool | None = None, page_size: int | None = None) -> tuple[ltx.Header, Pages]:
    """A header with pages that make a valid file."""
    size = page_size or draw(st.sampled_from([512, 1024, 4096, 65536]))
    commit = draw(st.integers(1, 12))
    first = 1 if (draw(st.booleans()) if snapshot is None else snapshot) else draw(st.integers(2, 1 << 63))
    header = make_header(
        txids=(first, draw(st.integers(first, (1 << 64) - 1))),
        commit=commit,
        page_size=size,
        timestamp_ms=draw(st.integers(0, MAX_TIME_MS)),
        wal_offset=32,
        wal_size=draw(st.integers(0, (1 << 63) - 1)),
        wal_salt1=draw(st.integers(0, (1 << 32) - 1)),
        wal_salt2=draw(st.integers(0, (1 << 32) - 1)),
        node_id=draw(st.integers(0, (1 << 64) - 1)),
    )
    pgnos = range(1, commit + 1) if first == 1 else sorted(draw(st.sets(st.integers(1, commit))))
    return header, {pgno: draw(page_bytes(size)) for pgno in pgnos}


def encoded(file: tuple[ltx.Header, Pages]) -> bytes:
    return encode_file(file[0], file[1].items())
