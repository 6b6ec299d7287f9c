"""Where publishing goes on: what the newest file of a replica says of the WAL, checked against the WAL."""

from __future__ import annotations

from collections.abc import Sequence

from litereplica.errors import UsageError
from litereplica.format import ltx
from litereplica.format.wal import HEADER_SIZE as WAL_HEADER_SIZE
from litereplica.ltxstore.store import LTXStore, OpenedFile
from litereplica.storage.base import ByteRange
from litereplica.types import TXID, FileInfo, Pgno
from litereplica.writer.database.wal_follower import WalTail


async def newest_file(store: LTXStore) -> tuple[TXID, FileInfo | None]:
    """(the newest TXID of the replica, 0 when it is empty; the L0 file that ends there or None)."""
    files = await store.list_levels()
    newest = max((info.max_txid for info in files), default=0)
    return newest, next((info for info in files if info.level == 0 and info.max_txid == newest), None)


def check_page_size(header: ltx.Header, page_size: int, *, url: str) -> None:
    """Raise `UsageError` unless files of this page size may follow."""
    if header.page_size != page_size:
        raise UsageError(
            f"the database has pages of {page_size} bytes, the replica {url} of {header.page_size}",
            hint="replicate to another URL",
        )


async def frames_covered(store: LTXStore, file: OpenedFile, tail: WalTail) -> int | None:
    """How many frames of the generation that `tail` follows are published once `file` is; None when it does not
    belong to that generation.

    The salts must agree, a transaction must end where the file does, with the same size of the database, and the
    pages must be those of the file: after a loss of power a WAL may end earlier, and go on differently with the same
    salts. Of a large file, the last page has to do. The frames asked for must not be published yet by `tail`.
    """
    wal, header = tail.header, file.header
    if wal is None or not same_generation(header, tail) or header.wal_offset < WAL_HEADER_SIZE:
        return None
    frames, rest = divmod(header.wal_offset + header.wal_size - WAL_HEADER_SIZE, wal.frame_size)
    if rest:
        return None
    if frames == 0:
        return 0
    if tail.commit_at(frames) != header.commit:
        return None
    if file.pages is not None:
        return frames if _has_pages_of(file, file.pages, tail, frames) else None
    page = await _page(store, file, tail.pgno_at(frames - 1))
    return frames if page == tail.read_page(frames - 1) else None


def same_generation(header: ltx.Header, tail: WalTail) -> bool:
    """Was a file made from the generation of the WAL that `tail` follows?"""
    wal = tail.header
    return wal is not None and (wal.salt1, wal.salt2) == (header.wal_salt1, header.wal_salt2)


def _has_pages_of(file: OpenedFile, pages: Sequence[bytes], tail: WalTail, frames: int) -> bool:
    """Were the file's pages made from the first `frames` frames? One that begins behind the WAL's first frame has all
    pages of its own frames; any other may lack those that the replica had."""
    first = tail.frame_at(file.header.wal_offset)
    for pgno, frame in tail.waiting_pages(frames, commit=file.header.commit):
        row = file.index.position(pgno)
        if row is None:
            if 0 < first <= frame:
                return False
        elif pages[row] != tail.read_page(frame):
            return False
    return True


async def _page(store: LTXStore, file: OpenedFile, pgno: Pgno) -> bytes | None:
    row = file.index.position(pgno)
    if row is None:
        return None
    start = int(file.index.offset[row])
    blob = await store.get(file.info, ByteRange(start, start + int(file.index.size[row])))
    return ltx.decode_frame(blob.data, pgno=pgno, page_size=file.header.page_size)
