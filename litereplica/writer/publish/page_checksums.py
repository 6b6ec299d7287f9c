"""Checksums of the replica's pages, 8 bytes a page, in a file of the state directory.

After downtime they show which pages of the database differ from the replica. They are valid for one *version* of a
replica: its newest TXID and the checksum of the file of that TXID, so that a new replica under the same URL is not
mistaken for its predecessor. They are updated with every file that the store has acknowledged.

    header   64 bytes: version, page size and size of the database, inode, boot id, whether it is synced
    body     a u64 checksum for each page, by page number; 0 for a page whose checksum is unknown

Invariant: while checksums are being written, the header names no version. The header is trusted if it was written since
this boot (the page cache keeps the order of writes), or if it says that everything was synced to disk. In a damaged
file only page checksums can be wrong, and a wrong one costs one page that is published needlessly.

The file is optional: if it cannot be written, a warning is logged and publishing continues without it. It is not kept
open. Methods block, and are called one at a time.
"""

from __future__ import annotations

import logging
import os
import secrets
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from fastcrc import crc64
from numpy.typing import NDArray

from litereplica.file_io import write_all
from litereplica.foreign_directory import open_regular
from litereplica.runs import consecutive
from litereplica.types import TXID
from litereplica.writer.database.published import Version

log = logging.getLogger(__name__)

UNKNOWN = 0
"""Stands for an unknown checksum; no page has it."""

_MAGIC = b"LRsums1\n"
_HEADER = struct.Struct("<8s16sQQIIQ?")
_HEADER_SIZE = 64
_CHECKSUM_SIZE = 8
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def page_checksum(page: bytes) -> int:
    """CRC-64/XZ of a page, never 0. The polynomial of LTX files is too sparse to tell similar pages apart as surely."""
    return crc64.xz(page) or 1


@dataclass(frozen=True, slots=True, eq=False)
class PageChanges:
    """The checksums of the pages in one file (`pgno` is ascending), and the database's size after it in pages."""

    commit: int
    pgno: NDArray[np.uint32]
    checksums: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class _Header:
    boot: bytes
    txid: TXID
    checksum: int
    page_size: int
    commit: int
    inode: int
    on_disk: bool

    def encode(self) -> bytes:
        fields = (self.boot, self.txid, self.checksum, self.page_size, self.commit, self.inode, self.on_disk)
        return _HEADER.pack(_MAGIC, *fields).ljust(_HEADER_SIZE, b"\0")

    @classmethod
    def decode(cls, data: bytes) -> _Header | None:
        if len(data) < _HEADER_SIZE:
            return None
        magic, *fields = _HEADER.unpack_from(data)
        return cls(*fields) if magic == _MAGIC else None


class PageChecksums:
    """The checksums in the file at `path`. `version` is that for which they are valid, None if they are not.

    `directory` is a descriptor of the file's directory, which stays the caller's; None if nobody else can write to it.
    """

    def __init__(self, path: Path, *, directory: int | None = None) -> None:
        self.version: Version | None = None
        self._path = path
        self._directory = directory
        self._inode = 0
        self._known_inode = 0  # the one in the header
        self._page_size = 0
        self._commit = 0
        self._on_disk = False

    def open(self, *, inode: int, page_size: int) -> None:
        """Read the header. `inode` is the database file's."""
        self._inode, self._page_size = inode, page_size
        try:
            with os.fdopen(self._open_file(os.O_RDONLY), "rb") as file:
                header = _Header.decode(file.read(_HEADER_SIZE))
                size = os.fstat(file.fileno()).st_size
        except OSError:
            return
        if header is None or header.page_size != page_size or header.commit > size // _CHECKSUM_SIZE:
            return
        self._known_inode = header.inode
        if header.txid and header.checksum and (header.on_disk or header.boot == _boot_id()):
            self.version = Version(header.txid, header.checksum)
            self._commit, self._on_disk = header.commit, header.on_disk

    @property
    def are_of_another_file(self) -> bool:
        """True if the replica was last written from another database file, by its inode."""
        return self._known_inode not in (0, self._inode)

    def load(self) -> NDArray[np.uint64]:
        """Return the checksums of pages 1, 2, … up to the database's size. Raises `OSError`."""
        checksums = np.zeros(self._commit, np.uint64)
        with os.fdopen(self._open_file(os.O_RDONLY), "rb") as file:
            file.seek(_HEADER_SIZE)
            data = file.read(self._commit * _CHECKSUM_SIZE)
        found = np.frombuffer(data, np.uint64, len(data) // _CHECKSUM_SIZE)
        checksums[: len(found)] = found
        return checksums

    def at(self, pgnos: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Return the checksums of some pages, whose numbers are ascending. Raises `OSError`."""
        checksums = np.zeros(len(pgnos), np.uint64)
        with os.fdopen(self._open_file(os.O_RDONLY), "rb") as file:
            for start, end in consecutive(pgnos):
                file.seek(_HEADER_SIZE + (int(pgnos[start]) - 1) * _CHECKSUM_SIZE)
                found = np.frombuffer(data := file.read((end - start) * _CHECKSUM_SIZE), np.uint64, len(data) // 8)
                checksums[start : start + len(found)] = found
        return checksums

    def record(self, previous: Version, version: Version, changes: PageChanges) -> None:
        """Update the checksums by a file that brought the replica from `previous` to `version`.

        No effect unless they are valid for `previous`.
        """
        if self.version == previous:
            self._write(version, changes, keep=True)

    def replace(self, version: Version, changes: PageChanges) -> None:
        """Replace all checksums."""
        self._write(version, changes, keep=False)

    def close(self) -> None:
        """Sync the checksums to disk, so that they survive a power loss."""
        if self.version is None or self._on_disk:
            return
        try:
            fd = self._open_file()
            try:
                os.fsync(fd)
                self._write_header(fd, on_disk=True)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as exc:
            self._give_up(exc)

    def _write(self, version: Version, changes: PageChanges, *, keep: bool) -> None:
        try:
            fd = self._open_file()
            try:
                self._invalidate(fd)
                if not keep:
                    os.ftruncate(fd, _HEADER_SIZE)
                _write_checksums(fd, changes)
                os.ftruncate(fd, _HEADER_SIZE + changes.commit * _CHECKSUM_SIZE)
                self.version, self._commit = version, changes.commit
                self._write_header(fd, on_disk=False)
            finally:
                os.close(fd)
        except OSError as exc:
            self._give_up(exc)

    def _open_file(self, flags: int = os.O_RDWR | os.O_CREAT) -> int:
        if self._directory is None:
            return open_regular(self._path, flags)
        return open_regular(self._path.name, flags, dir_fd=self._directory)

    def _invalidate(self, fd: int) -> None:
        was_on_disk = self._on_disk
        self.version, self._on_disk = None, False
        self._write_header(fd, on_disk=False)
        if was_on_disk:
            os.fsync(fd)

    def _write_header(self, fd: int, *, on_disk: bool) -> None:
        version = self.version or Version(0, 0)
        header = _Header(
            _boot_id(), version.txid, version.checksum, self._page_size, self._commit, self._inode, on_disk
        )
        write_all(fd, header.encode(), 0)
        self._known_inode, self._on_disk = self._inode, on_disk

    def _give_up(self, error: OSError) -> None:
        self.version = None
        log.warning("cannot write %s: %s; to compare pages, the replica will have to be read", self._path, error)


def _write_checksums(fd: int, changes: PageChanges) -> None:
    """Write the checksums, each run of contiguous pages in one call."""
    pgno, checksums = changes.pgno, changes.checksums
    for start, end in consecutive(pgno):
        write_all(fd, checksums[start:end].tobytes(), _HEADER_SIZE + (int(pgno[start]) - 1) * _CHECKSUM_SIZE)


@cache
def _boot_id() -> bytes:
    """The id of this boot of the machine; a random one for this process if it is unknown."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return secrets.token_bytes(16)
