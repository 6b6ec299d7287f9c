"""LTX files that somebody plants who can write to the bucket, and who makes all checksums right."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from litereplica.format import ltx
from litereplica.format.ltx import Header
from litereplica.format.names import Layout, file_key, format_txid, level_prefix
from litereplica.testing.ltx_files import encode_file
from litereplica.types import TXID, Pgno
from tests.helpers.publisher import Publisher

PAGE_SIZE = 4096
MOST_PAGES = 0xFFFFFFFE
GIB = 1 << 30
CHECKSUM = (1 << 63 | 5).to_bytes(8, "big")

Planter = Callable[[Publisher], Path]
"""Plants a file, and returns its path."""


def place(publisher: Publisher, data: bytes, *, level: int = 0, low: TXID, high: TXID) -> Path:
    """Put a file under its name, whole, as a store does."""
    path = publisher.replica / f"{level_prefix(Layout.FILE, level)}{format_txid(low)}-{format_txid(high)}.ltx"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.rename(path)
    return path


def header(publisher: Publisher, low: TXID, high: TXID, *, commit: int, page_size: int = PAGE_SIZE) -> Header:
    """A header of the replica's own lineage, which can be read in the bucket."""
    return Header(
        page_size=page_size,
        commit=commit,
        min_txid=low,
        max_txid=high,
        timestamp_ms=1_700_000_000_000,
        node_id=publisher.lineage,
    )


def _next(publisher: Publisher, *, commit: int, pages: dict[Pgno, bytes]) -> Path:
    txid = publisher.txid + 1
    return place(
        publisher,
        encode_file(header(publisher, txid, txid, commit=commit), sorted(pages.items())),
        low=txid,
        high=txid,
    )


def huge_commit(publisher: Publisher) -> Path:
    """A file of 269 bytes that claims a database of 16 TiB."""
    return _next(publisher, commit=MOST_PAGES, pages={1: publisher.content[:PAGE_SIZE]})


def grown_by_what_it_lacks(publisher: Publisher) -> Path:
    """Claims one page more than it has."""
    return _next(publisher, commit=len(publisher.content) // PAGE_SIZE + 2, pages={1: publisher.content[:PAGE_SIZE]})


def empty(publisher: Publisher) -> Path:
    """No bytes."""
    txid = publisher.txid + 1
    return place(publisher, b"", low=txid, high=txid)


def other_txids(publisher: Publisher) -> Path:
    """A sound file under the name of another one."""
    txid = publisher.txid + 1
    data = encode_file(header(publisher, txid + 5, txid + 5, commit=2), [(1, publisher.content[:PAGE_SIZE])])
    return place(publisher, data, low=txid, high=txid)


def sparse_index(publisher: Publisher) -> Path:
    """An index of 60 GiB and frames of as much, in a file that takes no space."""
    return _sparse(publisher, index=60 * GIB, frames=60 * GIB, commit=MOST_PAGES)


def sparse_index_that_fits(publisher: Publisher) -> Path:
    """An index of 200 MiB of zeroes, which its frames could have."""
    return _sparse(publisher, index=200 << 20, frames=60 * GIB, commit=MOST_PAGES)


def sparse_frames(publisher: Publisher) -> Path:
    """Frames of 60 GiB that are zeroes, and no index."""
    return _sparse(publisher, index=1, frames=60 * GIB, commit=2)


def index_before_the_file(publisher: Publisher) -> Path:
    """An index that claims more bytes than its file has."""
    path = huge_commit(publisher)
    data = bytearray(path.read_bytes())
    data[-ltx.TAIL_SIZE : -ltx.TRAILER_SIZE] = (1 << 63).to_bytes(8, "big")
    path.write_bytes(data)
    return path


def symbolic_link(publisher: Publisher) -> Path:
    """A link to a file outside of the replica."""
    path = publisher.replica / file_key(Layout.FILE, 0, publisher.txid + 1, publisher.txid + 1)
    path.symlink_to("/etc/passwd")
    return path


def fifo(publisher: Publisher) -> Path:
    """A pipe that nobody writes to."""
    path = publisher.replica / file_key(Layout.FILE, 0, publisher.txid + 1, publisher.txid + 1)
    os.mkfifo(path)
    return path


def _sparse(publisher: Publisher, *, index: int, frames: int, commit: int) -> Path:
    txid = publisher.txid + 1
    path = place(publisher, header(publisher, txid, txid, commit=commit).encode(), low=1 << 40, high=1 << 40)
    size = ltx.HEADER_SIZE + frames + len(ltx.END_OF_FRAMES) + index + ltx.TAIL_SIZE
    with path.open("r+b") as file:
        file.truncate(size)
        file.seek(size - ltx.TAIL_SIZE)
        file.write(index.to_bytes(8, "big") + bytes(8) + CHECKSUM)
    return path.rename(path.with_name(Path(file_key(Layout.FILE, 0, txid, txid)).name))


REFUSED: dict[str, Planter] = {
    each.__name__: each
    for each in (
        huge_commit,
        grown_by_what_it_lacks,
        empty,
        other_txids,
        sparse_index,
        sparse_index_that_fits,
        sparse_frames,
        index_before_the_file,
    )
}
"""Files that a reader refuses."""

NO_OBJECTS: dict[str, Planter] = {each.__name__: each for each in (symbolic_link, fifo)}
"""What is no object of a store."""
