"""CRC-64/GO-ISO, the checksum of LTX files."""

from __future__ import annotations

from fastcrc import crc64

CHECKSUM_FLAG = 1 << 63
"""Set in every stored checksum, so that none is zero."""


def update(crc: int | None, data: bytes | bytearray | memoryview) -> int:
    """Continue a CRC-64 over `data`; `crc` is None at the start."""
    return crc64.go_iso(data, crc)


def stored(crc: int) -> int:
    """The form in which files store a CRC."""
    return crc | CHECKSUM_FLAG
