"""The LTX files that pages are read from, by the small numbers that a `LOCATION` holds.

An id stands for one file with one content for the life of this process: a file that was replaced under its name gets
another id, and no id is used twice. A file stays as long as a location names it: objects with locations register
among the table's `holders` (`file_holders.py`). Other files are dropped now and then, so that weeks of polling take no
memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from litereplica.errors import DamagedFile
from litereplica.format.names import MAX_TXID
from litereplica.ltxstore.frame_checksums import FileSums, FrameSums
from litereplica.ltxstore.store import OpenedFile
from litereplica.replica.file_holders import FileHolders
from litereplica.storage.base import Blob
from litereplica.types import FileInfo


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the store.

    `checksum` is that of its trailer: the identity of its content. `sums`, of a large file, say what is known of its
    frame checksums.
    """

    info: FileInfo
    checksum: int
    sums: FileSums | None = None


class FileTable:
    """Files by id, from 1 up.

    `frame_sums` caches the frame checksums of all files. `holders` are the objects that keep files in the table.
    `condemned` are the files that failed their check as a whole: none of their pages may be used.
    """

    def __init__(self) -> None:
        self.frame_sums = FrameSums()
        self.holders = FileHolders()
        self.condemned: dict[int, DamagedFile] = {}
        self._files: dict[int, SourceFile] = {}
        self._ids: dict[tuple[str, int], int] = {}
        self._by_name: dict[str, int] = {}
        self._etags: dict[int, str] = {}
        self._next_id = 1

    def __len__(self) -> int:
        return len(self._files)

    def infos(self) -> list[FileInfo]:
        """Return every file that may be used, by its name."""
        usable = [file.info for file_id, file in self._files.items() if file_id not in self.condemned]
        return sorted(usable, key=str)

    def add(self, opened: OpenedFile) -> int:
        """Return the id of a file, the same one each time while it is not forgotten.

        When the frame checksums, found at last, show that the first opening read a damaged index, the next one counts.
        """
        name = str(opened.info)
        key = (name, opened.file_checksum)
        if key not in self._ids:
            self._ids[key] = self._next_id
            self._by_name[name] = self._next_id
            self._files[self._next_id] = SourceFile(opened.info, opened.file_checksum, opened.sums)
            if opened.etag:
                self._etags[self._next_id] = opened.etag
            self._next_id += 1
        elif opened.sums is not None and opened.sums.head is not None:
            self._files[self._ids[key]] = SourceFile(opened.info, opened.file_checksum, opened.sums)
        return self._ids[key]

    def get(self, file_id: int) -> SourceFile | None:
        """Return the file of an id; None for 0 and for a file that was dropped."""
        return self._files.get(file_id)

    def condemn(self, file_id: int, damage: DamagedFile) -> None:
        """Add a file to `condemned`."""
        self.condemned[file_id] = damage

    def checksums(self, file_ids: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Return the checksum of each file; 0 for an unknown id."""
        ids, places = np.unique(file_ids, return_inverse=True)
        found = [file.checksum if (file := self._files.get(file_id)) else 0 for file_id in ids.tolist()]
        checksums: NDArray[np.uint64] = np.array(found, np.uint64)[places]
        return checksums

    def newest_txids(self, file_ids: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Return the max TXID of each file; the highest of all for an unknown id."""
        ids, places = np.unique(file_ids, return_inverse=True)
        found = [file.info.max_txid if (file := self._files.get(file_id)) else MAX_TXID for file_id in ids.tolist()]
        txids: NDArray[np.uint64] = np.array(found, np.uint64)[places]
        return txids

    def last_txids(self) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
        """Return the ids, ascending, of all files that may be used, and the max TXID of each."""
        usable = sorted((file_id, file) for file_id, file in self._files.items() if file_id not in self.condemned)
        ids = np.array([file_id for file_id, _ in usable], np.uint32)
        return ids, np.array([file.info.max_txid for _, file in usable], np.uint64)

    def is_same_object(self, file_id: int, blob: Blob) -> bool:
        """True if `blob` is known to be a part of the object that was opened as this file.

        False if it is not, or if that is unknown: stores leave etags out, and change them.
        """
        file = self._files.get(file_id)
        if file is None or blob.size != file.info.size:
            return False
        return bool(blob.etag) and self._etags.get(file_id) == blob.etag

    def note_etag(self, file_id: int, etag: str) -> None:
        """Record that the object with this etag has the content of the file."""
        self._etags[file_id] = etag

    def is_replaced_by(self, opened: OpenedFile) -> bool:
        """True if a file of this name with another content is known."""
        known = self._by_name.get(str(opened.info))
        return known is not None and self._files[known].checksum != opened.file_checksum

    def forget_unused(self) -> None:
        """Drop the files that no holder names."""
        keep = self.holders.files()
        for file_id in [file_id for file_id in self._files if file_id not in keep]:
            file = self._files.pop(file_id)
            self._etags.pop(file_id, None)
            self.condemned.pop(file_id, None)
            name = str(file.info)
            del self._ids[name, file.checksum]
            if self._by_name.get(name) == file_id:
                del self._by_name[name]
