"""Whole LTX files in memory: made, merged and read."""

from __future__ import annotations

from litereplica.format.decoder import LTXFile, decode_file
from litereplica.ltxstore.store import LTXStore
from litereplica.types import FileInfo


async def read_file(store: LTXStore, info: FileInfo) -> LTXFile:
    """A whole file, its CRC checked: one request."""
    return decode_file((await store.get(info)).data)
