"""Whole LTX files in memory: made, merged and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from litereplica.format import ltx
from litereplica.format.compactor import FramesInput
from litereplica.format.decoder import LTXFile, decode_file
from litereplica.format.encoder import Encoder
from litereplica.ltxstore.store import LTXStore
from litereplica.types import FileInfo, Pgno


def encode_file(header: ltx.Header, pages: Iterable[tuple[Pgno, bytes | memoryview]]) -> bytes:
    """A whole file; `pages` ascending. Raises `LTXError` when the pages do not make a valid file."""
    encoder = Encoder(header)
    pieces = [encoder.start()]
    pieces += [encoder.page(pgno, page) for pgno, page in pages]
    pieces.append(encoder.finish())
    return b"".join(pieces)


def compaction_input(header: ltx.Header, pages: Iterable[tuple[Pgno, bytes | memoryview]]) -> FramesInput:
    """A file for `format.compactor.compact`, made of pages, ascending; they are taken once, a frame at a time."""

    def frames() -> Iterator[list[tuple[Pgno, bytes]]]:
        for pgno, page in pages:
            yield [(pgno, ltx.encode_frame(pgno, page))]

    return FramesInput(header, frames())


async def read_file(store: LTXStore, info: FileInfo) -> LTXFile:
    """A whole file, its CRC checked: one request."""
    return decode_file((await store.get(info)).data)
