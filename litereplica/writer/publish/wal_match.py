"""Compares the newest file of a replica with the WAL: how many frames of the WAL are in the replica already."""

from __future__ import annotations

from collections.abc import Sequence

from litereplica.errors import UsageError
from litereplica.format import ltx
from litereplica.format.wal import HEADER_SIZE as WAL_HEADER_SIZE
from litereplica.ltxstore.store import LTXStore, OpenedFile
from litereplica.storage.base import ByteRange
from litereplica.types import TXID, FileInfo, Pgno
from litereplica.writer.database.wal_follower import WalFollower


async def newest_file(store: LTXStore) -> tuple[TXID, FileInfo | None]:
    """Return (the newest TXID of the replica, 0 if it is empty; the level 0 file that ends there, or None)."""
    files = await store.list_levels()
    newest = max((info.max_txid for info in files), default=0)
    return newest, next((info for info in files if info.level == 0 and info.max_txid == newest), None)


def check_page_size(header: ltx.Header, page_size: int, *, url: str) -> None:
    """Raise `UsageError` unless `page_size` is that of the replica at `url`, whose newest file has `header`."""
    if header.page_size != page_size:
        raise UsageError(
            f"the database has pages of {page_size} bytes, the replica {url} of {header.page_size}",
            hint="replicate to another URL",
        )


async def frames_covered(store: LTXStore, file: OpenedFile, wal: WalFollower) -> int | None:
    """Return how many frames of the WAL's generation the replica contains up to `file`.

    Returns None if the file was not made from this generation: the salts must agree, a transaction must end where the
    file does, with the same database size, and the pages must be equal, since after a power loss a WAL may end earlier
    and continue differently with the same salts. Of a large file only the last page is compared. `wal` must not have
    advanced over these frames.
    """
    generation, header = wal.header, file.header
    if generation is None or not same_generation(header, wal) or header.wal_offset < WAL_HEADER_SIZE:
        return None
    frames, partial = divmod(header.wal_offset + header.wal_size - WAL_HEADER_SIZE, generation.frame_size)
    if partial:
        return None
    if frames == 0:
        return 0
    if wal.commit_at(frames) != header.commit:
        return None
    if file.pages is not None:
        return frames if _has_pages_of(file, file.pages, wal, frames) else None
    page = await _page(store, file, wal.pgno_at(frames - 1))
    return frames if page == wal.read_page(frames - 1) else None


def same_generation(header: ltx.Header, wal: WalFollower) -> bool:
    """True if a file was made from the generation that `wal` follows, by the salts."""
    generation = wal.header
    return generation is not None and (generation.salt1, generation.salt2) == (header.wal_salt1, header.wal_salt2)


def _has_pages_of(file: OpenedFile, pages: Sequence[bytes], wal: WalFollower, frames: int) -> bool:
    """True if the file's pages equal those of the first `frames` frames.

    A file that begins after the WAL's first frame contains every page of its frames; any other one (a snapshot, a
    difference) may lack pages that the replica had already.
    """
    first = wal.frame_at(file.header.wal_offset)
    for pgno, frame in wal.waiting_pages(frames, commit=file.header.commit):
        row = file.index.position(pgno)
        if row is None:
            if 0 < first <= frame:
                return False
        elif pages[row] != wal.read_page(frame):
            return False
    return True


async def _page(store: LTXStore, file: OpenedFile, pgno: Pgno) -> bytes | None:
    row = file.index.position(pgno)
    if row is None:
        return None
    start = int(file.index.offset[row])
    blob = await store.get(file.info, ByteRange(start, start + int(file.index.size[row])))
    return ltx.decode_frame(blob.data, pgno=pgno, page_size=file.header.page_size)
