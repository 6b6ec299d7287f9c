"""The files of a replica that may take the place of others: those made here, and those read whole and checked here.

Retention deletes a file only behind such a one. Header and page index of a large file say nothing about its pages, and
a file may have been planted by somebody who may write to the bucket but not delete. A file is recognised by its size
and the checksum in its trailer, which are compared with the object each time.

They are noted in a file of the writer's state directory, so that a restart need not read them again. The note is only
used for the replica that it names. Without a directory, or if it cannot be written, it is kept in memory.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection
from pathlib import Path

from litereplica.errors import EnvironmentProblem
from litereplica.foreign_directory import open_regular, opened_own_directory, read_note
from litereplica.ltxstore.file_stream import read_whole
from litereplica.ltxstore.store import LTXStore
from litereplica.types import FileInfo, FileName

log = logging.getLogger(__name__)

FILE_NAME = "checked.json"
_TEMPORARY = f"spool-{FILE_NAME}"
MAX_NOTE_BYTES = 64 << 20
"""More than the note of a million files."""


class CheckedFiles:
    """The checked files of the replica in `store`; the note is in `directory`. Methods with `load` and `save` block.

    `bytes_read` counts the bytes of the files that were read to check them.
    """

    def __init__(self, store: LTXStore, directory: Path | None) -> None:
        self.bytes_read = 0
        self._store = store
        self._path = None if directory is None else directory / FILE_NAME
        self._known: dict[FileName, tuple[int, int]] = {}
        self._changed = False

    def load(self) -> None:
        """Read the note, if there is a valid one of this replica."""
        if self._path is None:
            return
        try:
            with opened_own_directory(self._path.parent) as directory:
                note = json.loads(read_note(FILE_NAME, dir_fd=directory, limit=MAX_NOTE_BYTES))
            if note["url"] == self._store.url:
                self._known |= {
                    (int(level), int(low, 16), int(high, 16)): (int(size), int(checksum, 16))
                    for level, low, high, size, checksum in note["files"]
                }
        except (EnvironmentProblem, OSError, ValueError, TypeError, KeyError, RecursionError):
            return

    def save(self) -> None:
        """Replace the note, if something has changed."""
        if self._path is None or not self._changed:
            return
        files = [
            (level, f"{low:016x}", f"{high:016x}", size, f"{checksum:016x}")
            for (level, low, high), (size, checksum) in sorted(self._known.items())
        ]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            with opened_own_directory(self._path.parent) as directory:
                with os.fdopen(open_regular(_TEMPORARY, flags, dir_fd=directory), "wb") as file:
                    file.write(json.dumps({"url": self._store.url, "files": files}).encode())
                os.rename(_TEMPORARY, FILE_NAME, src_dir_fd=directory, dst_dir_fd=directory)
            self._changed = False
        except (EnvironmentProblem, OSError) as exc:
            log.debug("cannot write %s: %s", self._path, exc)

    def add(self, info: FileInfo, checksum: int) -> None:
        """Note a file that was made here, or read whole; `checksum` is that of its trailer."""
        self._known[info.name] = (info.size, checksum)
        self._changed = True

    def keep(self, names: Collection[FileName]) -> None:
        """Forget all files but these."""
        gone = self._known.keys() - set(names)
        for name in gone:
            del self._known[name]
        self._changed |= bool(gone)

    async def require(self, info: FileInfo) -> None:
        """Read a file whole, unless it is a checked one, which takes one small request.

        Raises:
            DamagedFile: it fails a check.
            NotFound: it does not exist, or is another one than was listed.
            StorageError: a request failed.
        """
        known = self._known.get(info.name)
        if known is not None and known == (info.size, await self._store.read_checksum(info)):
            return
        self.add(info, (await read_whole(self._store, info)).file_checksum)
        self.bytes_read += info.size
