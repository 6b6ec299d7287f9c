"""Feeds the decoders what libFuzzer makes of its input, with checksums made right: `scripts/fuzz --decoders`.

The input is a list of choices and bytes. They become the parts of an LTX file (header, frames, index, end), of a WAL,
or of an object of frame checksums; whatever only guards against damage is computed, so that mutants get past it. Every
decoder must return a value or raise one of our errors, and a file that is read must be what its own parts say.
"""

from __future__ import annotations

import contextlib
import struct
import sys

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore] # installed by hand: scripts/fuzz --help
import lz4.block

with atheris.instrument_imports(include=["litereplica.format"]):
    from litereplica.errors import FormatError, LTXError
    from litereplica.format import decoder, frame_checksums, names, sqlite, wal
    from tests.format.builders import CraftedFile, Frame, block_frame, make_header, make_page

PAGE_SIZE = 512
MOST_FRAMES = 6
REFUSALS = (LTXError, FormatError)


def ltx_file(data: atheris.FuzzedDataProvider) -> None:
    """An LTX file whose checksum is right for whatever it holds."""
    header = bytearray(make_header(txids=(1 + data.ConsumeIntInRange(0, 1), 2), commit=8).encode())
    for _ in range(data.ConsumeIntInRange(0, 3)):
        header[data.ConsumeIntInRange(4, len(header) - 1)] = data.ConsumeIntInRange(0, 255)
    file = CraftedFile(bytes(header), [_frame(data) for _ in range(data.ConsumeIntInRange(0, MOST_FRAMES))])
    if data.ConsumeBool():
        file.varints = data.ConsumeBytes(data.ConsumeIntInRange(0, 40))
    if data.ConsumeBool():
        file.index_size = data.ConsumeInt(8) & (1 << 64) - 1
    if data.ConsumeBool():
        file.end = data.ConsumeBytes(8)
    built = file.build()
    try:
        read = decoder.decode_file(built)
    except REFUSALS:
        return
    assert read.index.pgno.tolist() == [frame.pgno for frame in file.frames]
    assert b"".join(read.pages) == b"".join(frame.summed[-PAGE_SIZE:] for frame in file.frames)


def _frame(data: atheris.FuzzedDataProvider) -> Frame:
    """A frame of a page, or of a payload that the fuzzer made; its checksum is of what the payload says."""
    pgno = data.ConsumeIntInRange(0, 9)
    if data.ConsumeBool():
        return block_frame(pgno, make_page(data.ConsumeIntInRange(0, 3)))
    payload = data.ConsumeBytes(data.ConsumeIntInRange(0, 64))
    try:
        page = lz4.block.decompress(payload, uncompressed_size=PAGE_SIZE)
    except lz4.block.LZ4BlockError:
        page = b""
    flags = data.ConsumeIntInRange(0, 3)
    return block_frame(
        pgno,
        page,
        payload=payload,
        flags=flags,
        claim=data.ConsumeInt(4) & (1 << 32) - 1 if data.ConsumeBool() else None,
    )


def wal_file(data: atheris.FuzzedDataProvider) -> None:
    """A WAL whose frames have the right salts and checksums, up to one that has not."""
    big_endian = data.ConsumeBool()
    magic = wal.MAGIC_BIG_ENDIAN if big_endian else wal.MAGIC_LITTLE_ENDIAN
    version = 3_007_000 if data.ConsumeBool() else data.ConsumeInt(4) & 0xFFFFFFFF
    page_size = data.PickValueInList([512, 1024, 1, 0, 65_536, 513])
    head = struct.pack(">6I", magic, version, page_size, 1, 2, 3)
    head += struct.pack(">2I", *wal.checksum_words(head, (0, 0), big_endian=big_endian))
    try:
        header = wal.WALHeader.decode(head)
    except REFUSALS:
        return
    state, frames, valid, body = header.checksum, data.ConsumeIntInRange(0, MOST_FRAMES), 0, b""
    broken = data.ConsumeIntInRange(0, MOST_FRAMES)
    for number in range(frames):
        pgno, commit = data.ConsumeInt(4) & 0xFFFFFFFF, data.ConsumeInt(4) & 0xFFFFFFFF
        page = data.ConsumeBytes(16).ljust(page_size, b"\7")
        start = struct.pack(">2I", pgno, commit)
        state = wal.checksum_words(start + page, state, big_endian=big_endian)
        sums = struct.pack(">2I", *state) if number != broken else bytes(8)
        body += start + struct.pack(">2I", 2, 3) + sums + page
        if number == valid and pgno and sums != bytes(8):
            valid += 1
    body += data.ConsumeBytes(data.ConsumeIntInRange(0, 100))
    found = wal.scan_frames(body, header=header, previous=header.checksum)
    assert len(found) >= valid
    assert found.committed <= len(found)


def checksums_object(data: atheris.FuzzedDataProvider) -> None:
    """An object of frame checksums whose own checksums are right."""
    fields = (data.ConsumeInt(4) & 0xFFFFFFFF, data.ConsumeInt(8) & (1 << 64) - 1, data.ConsumeInt(4) & 0xFFFFFFFF, 7)
    head = frame_checksums.ChecksumsHead.decode(frame_checksums.ChecksumsHead(*fields).encode())
    number = data.ConsumeIntInRange(0, 3)
    try:
        head.decode_segment(number, data.ConsumeBytes(data.ConsumeIntInRange(0, 40)))
    except REFUSALS:
        return


def raw(data: atheris.FuzzedDataProvider) -> None:
    """Bytes, and names, as they come."""
    given = data.ConsumeBytes(data.ConsumeIntInRange(0, 4096))
    for decode in (
        decoder.decode_file,
        wal.WALHeader.decode,
        frame_checksums.ChecksumsHead.decode,
        sqlite.DatabaseHeader.decode,
    ):
        with contextlib.suppress(*REFUSALS):
            decode(given)
    with contextlib.suppress(*REFUSALS):
        names.parse_txid(given.decode("latin-1"))


KINDS = (ltx_file, ltx_file, wal_file, checksums_object, raw)


def one_input(data: bytes) -> None:
    """Called by libFuzzer."""
    provider = atheris.FuzzedDataProvider(data)
    KINDS[provider.ConsumeIntInRange(0, len(KINDS) - 1)](provider)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
