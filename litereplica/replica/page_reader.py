"""Reads pages by their locations: from memory, then from the disk, then from the store.

`PageReader.read` turns each location into a page key (the checksum of its file and the page number) and looks for it in

1. the page store's memory, without a checkpoint (`page_store.py`);
2. the page store's disk tier, in a thread (`disk_pages.py`);
3. the store, through `Fetcher` (`fetch.py`), which adds the page's neighbourhood (`neighbourhood.py`), plans the
   requests (`read_plan.py`) and reads ahead of sequential readers (`readahead.py`).

A reader brings its own locations, so it needs no current position: reads of the live database, of its virtual WAL and
of past states all come through here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from litereplica.errors import FileVanished, ReplicaError
from litereplica.format.sqlite import lock_pgno
from litereplica.replica.fetch import Fetcher
from litereplica.replica.file_table import FileTable
from litereplica.replica.page_key import PageKey, page_key
from litereplica.replica.page_map import PageMap
from litereplica.replica.page_store import PageStore
from litereplica.replica.readahead import MIN_WINDOW, ReadAhead
from litereplica.types import Pgno

_LOCK_PAGE: PageKey = -1
"""Stands in for the key of the lock page, which is in no file."""


class PageReader:
    """Reads pages of one page size. `url` is for messages."""

    def __init__(self, files: FileTable, pages: PageStore, *, fetcher: Fetcher, url: str) -> None:
        self.pages_from_memory = 0
        self.pages_from_disk = 0
        self._files = files
        self._pages = pages
        self._fetcher = fetcher
        self._url = url

    @property
    def pages_from_store(self) -> int:
        """Number of pages that came from the store."""
        return self._fetcher.pages_fetched

    def read_now(self, first: Pgno, last: Pgno, pages: PageMap) -> bytearray | None:
        """Return consecutive pages of a map one after the other, if that takes no waiting; else None. No checkpoint."""
        checksums: dict[int, int] = {}
        file_ids = pages.file_ids(first, last)
        for file_id in set(file_ids):
            file = self._files.get(file_id)
            if file is None or file_id in self._files.condemned:
                return None
            checksums[file_id] = file.checksum
        keys = [page_key(checksums[file_id], pgno) for pgno, file_id in enumerate(file_ids, first)]
        found = self._pages.read_now(keys)
        if found is None:
            return None
        content, from_disk = found
        self.pages_from_disk += from_disk
        self.pages_from_memory += len(keys) - from_disk
        return content

    def note_read(self, first: Pgno, last: Pgno, pages: PageMap, policy: ReadAhead | None = None) -> None:
        """Let the read-ahead policy know of a read that was answered by `read_now`; `policy` as in `read`."""
        self._fetcher.note_read(first, last, pages, policy)

    async def read(
        self,
        pgnos: NDArray[np.uint32],
        locations: NDArray[np.void],
        *,
        around: PageMap | None = None,
        policy: ReadAhead | None = None,
    ) -> list[bytes]:
        """Return the pages in the order asked. The lock page is zeroes.

        A page that is fetched brings its neighbours in the map `around` with it. `policy` is the read-ahead policy for
        readers of another map than the current one.

        Raises:
            FileVanished, DamagedFile: heal the replica, take the new locations and read once more.
            ReplicaError: a page is in no file.
            TransientStorageError: the store does not answer in time.
            StorageError: from the store.
        """
        keys = self._keys(pgnos, locations)
        window = MIN_WINDOW
        if around is not None and keys:
            window = self._fetcher.note_read(int(pgnos[0]), int(pgnos[-1]), around, policy)
        found: dict[PageKey, bytes] = {_LOCK_PAGE: bytes(self._pages.page_size)}
        missing: dict[PageKey, int] = {}
        for i, key in enumerate(keys):
            page = found.get(key) or self._pages.get(key)
            if page is None:
                missing[key] = i
            else:
                found[key] = page
        self.pages_from_memory += len(found) - 1
        if missing:
            found |= await self._load(missing, pgnos, locations, around, window)
        return [found[key] for key in keys]

    def _keys(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void]) -> list[PageKey]:
        keys = []
        file_ids = locations["file"].tolist()
        files = {file_id: self._files.get(file_id) for file_id in set(file_ids)}
        for file_id in files.keys() & self._files.condemned.keys():
            raise self._files.condemned[file_id].with_traceback(None)
        for pgno, file_id in zip(pgnos.tolist(), file_ids, strict=True):
            file = files[file_id]
            if file is not None:
                keys.append(page_key(file.checksum, pgno))
            elif file_id:
                raise FileVanished(f"file {file_id} of page {pgno} is no longer part of {self._url}")
            elif pgno == lock_pgno(self._pages.page_size):
                keys.append(_LOCK_PAGE)
            else:
                raise ReplicaError(f"page {pgno} is in no file of {self._url}")
        return keys

    async def _load(
        self,
        missing: dict[PageKey, int],
        pgnos: NDArray[np.uint32],
        locations: NDArray[np.void],
        around: PageMap | None,
        window: int,
    ) -> dict[PageKey, bytes]:
        """Return the pages of these keys from disk or store; the values of `missing` are rows of `pgnos`."""
        found = await self._pages.load(list(missing))
        self.pages_from_disk += len(found)
        rows = [row for key, row in missing.items() if key not in found]
        if rows:
            found |= await self._fetcher.fetch(pgnos[rows], locations[rows], around, window=window)
        return found
