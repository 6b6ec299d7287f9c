"""Moves the current snapshot to other files when those that it reads from have gone, are damaged, or will be deleted.

Three occasions lead to a new listing and a new plan:

- **heal**: a read or a fetch met a file that vanished (404) or is damaged. The plan is for the same TXID, or for a
  later one when no file ends there any more.
- **rebase**: a poll found nothing new, and newer snapshots or compacted files exist (checked every few minutes), or a
  file has been condemned. The same plan, before anything fails.
- **a replica made anew** (`FoundFiles.whole`): every page counts as changed.

In each case `relocate` builds the new snapshot, renames the cached pages that have not changed, lets the observers move
their own maps, and replaces the current snapshot last. A failure before that changes nothing. The caller holds the
replica's turn.
"""

from __future__ import annotations

import logging

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.errors import DamagedFile, GapError
from litereplica.replica.current import Current
from litereplica.replica.next_files import FoundFiles, NextFiles
from litereplica.replica.page_map import PageMap
from litereplica.replica.snapshot import (
    Update,
    all_pages,
    changed_since,
    first_snapshot,
    page_size_changed,
    renaming,
)
from litereplica.types import FileInfo

log = logging.getLogger(__name__)


class Relocator:
    """Finds other files for the pages of the current snapshot. `url` is for messages."""

    def __init__(self, current: Current, next_files: NextFiles, *, url: str) -> None:
        self._current = current
        self._next_files = next_files
        self._files = current.files
        self._pages = current.pages
        self._url = url
        self._abandoned: set[int] = set()  # condemned files that a rebase has already tried to leave

    async def heal(self) -> Update:
        """Plan again for the current TXID or a later one. Raises `GapError` when the files do not reach it."""
        found = await self._next_files.files_at(self._current.snapshot.pos.txid)
        with trio.CancelScope(shield=True):  # it does not wait for the store; half of it would be no use to anybody
            update = await self.relocate(found)
        return update  # noqa: RET504 - for all that mypy knows, the scope might suppress an exception

    async def rebase(self) -> Update | None:
        """Leave files that will be deleted or must not be used. None if there is no reason, or no other file."""
        position = self._current.snapshot.pos.txid
        condemned = self._files.condemned.keys() - self._abandoned
        if not condemned and not await self._next_files.is_left_behind(self._files_in_use, position):
            return None
        self._abandoned |= condemned
        try:
            found = await self._next_files.files_at(position)
            self._require_others(found)
            update = await self.relocate(found)
        except (GapError, DamagedFile) as exc:
            log.info("%s: page locations stay as they are: %s", self._url, exc)
            return None
        log.info("%s: pages are read from newer files now, at TXID %016x", self._url, update.snapshot.pos.txid)
        return update

    async def relocate(self, found: FoundFiles) -> Update:
        """Make the snapshot of a whole plan the current one. Raises `PageSizeChanged`, `ReplicaError`."""
        before = self._current.snapshot
        replaced = found.whole or any(self._files.is_replaced_by(file) for file in found.files)
        after = first_snapshot(found.files, self._files)
        if after.page_size != before.page_size:
            raise page_size_changed(before.page_size, found.files[-1])
        changed = all_pages(after) if replaced else changed_since(before, after, found.files)
        if self._files.condemned:
            changed = np.union1d(changed, self._condemned_pages(before.pages, after.commit)).astype(np.uint32)
        await self._pages.rename(renaming(before.pages, after.pages, changed, self._files))
        for observer in self._current.observers:
            await observer.on_relocation(before.pages, after.pages, changed)
        self._current.replace(after, found.files)
        return Update(after, changed, relocated=True)

    def _require_others(self, found: FoundFiles) -> None:
        """Raise the error of a condemned file if a plan has it again, for want of others."""
        for file_id, damage in self._files.condemned.items():
            file = self._files.get(file_id)
            if file is not None and any(str(each.info) == str(file.info) for each in found.files):
                raise damage.with_traceback(None)

    def _files_in_use(self) -> list[FileInfo]:
        files = map(self._files.get, self._current.snapshot.pages.files().tolist())
        return [file.info for file in files if file is not None]

    def _condemned_pages(self, pages: PageMap, commit: int) -> NDArray[np.uint32]:
        """Return the pages ≤ commit that lie in condemned files: their cached content may be wrong."""
        condemned = list(self._files.condemned)
        found = [pgnos[np.isin(locations["file"], condemned)] for pgnos, locations in pages.chunks()]
        every = np.concatenate([np.empty(0, np.uint32), *found])
        wanted: NDArray[np.uint32] = every[every <= commit]
        return wanted
