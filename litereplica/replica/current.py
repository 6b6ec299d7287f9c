"""The current snapshot of a replica, with its files, cached pages and observers.

`Current.replace` is the one assignment by which the replica moves on. Once it returns, the pages that came with the new
files are cached, and the files that no location names have been forgotten if enough had gathered.
"""

from __future__ import annotations

from collections.abc import Sequence

from litereplica.ltxstore.store import OpenedFile
from litereplica.replica.file_table import FileTable
from litereplica.replica.observer import ReplicaObserver
from litereplica.replica.page_key import page_key
from litereplica.replica.page_map import PageMap
from litereplica.replica.page_store import PageStore
from litereplica.replica.remembered_position import RememberedPosition
from litereplica.replica.snapshot import Snapshot

FORGET_EVERY = 1024
"""Files that the table may gain before it is cleaned: some 300 bytes each, against a look at the whole map."""


class Current:
    """The current snapshot, and the files, cached pages and observers that belong to it.

    Its TXID is noted in `remembered`.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        files: FileTable,
        pages: PageStore,
        forget_every: int = FORGET_EVERY,
        remembered: RememberedPosition | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.files = files
        self.pages = pages
        self.observers: list[ReplicaObserver] = []
        self._remembered = remembered
        if remembered is not None:
            remembered.note(snapshot.pos.txid)
        self._forget_every = forget_every
        self._clean_at = len(files) + forget_every

    def replace(self, snapshot: Snapshot, opened: Sequence[OpenedFile]) -> None:
        """Make `snapshot`, to which the files `opened` led, the current one."""
        keep_pages(self.pages, snapshot.pages, opened, self.files)
        self.snapshot = snapshot
        if self._remembered is not None:
            self._remembered.note(snapshot.pos.txid)
        if len(self.files) >= self._clean_at:
            self.files.forget_unused()
            self._clean_at = len(self.files) + self._forget_every


def keep_pages(pages: PageStore, current: PageMap, opened: Sequence[OpenedFile], files: FileTable) -> None:
    """Cache the pages of files that were read whole, as far as the map `current` takes them from there."""
    for file in opened:
        if file.pages is not None:
            used = current.lookup(file.index.pgno)["file"] == files.add(file)
            rows = zip(file.index.pgno.tolist(), file.pages, used.tolist(), strict=True)
            pages.put({page_key(file.file_checksum, pgno): page for pgno, page, is_used in rows if is_used})
