"""The few values that every layer uses. No behaviour beyond formatting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

TXID: TypeAlias = int
"""A transaction ID of LTX: 1, 2, 3, … It counts published files, not SQLite commits."""

Pgno: TypeAlias = int
"""A SQLite page number, 1-based."""

FileName: TypeAlias = tuple[int, TXID, TXID]
"""What names an LTX file of a replica: level, least and greatest TXID. Ascending by level, then by TXIDs."""

SNAPSHOT_LEVEL = 9
"""The level of whole databases."""


@dataclass(frozen=True, slots=True, order=True)
class Pos:
    """A position of a database: the last TXID applied, and the checksum of the database there.

    `checksum` is 0 where the files carry none, as those of Litestream and of our writer do.
    """

    txid: TXID
    checksum: int = 0

    def __str__(self) -> str:
        return f"{self.txid:016x}/{self.checksum:016x}"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One LTX file of a store, as a listing has it.

    `size` is in bytes. `modified_ms` is the object's time in milliseconds since the epoch: the timestamp of the file's
    header on `file://`, the time of the upload on S3.
    """

    level: int
    min_txid: TXID
    max_txid: TXID
    size: int
    modified_ms: int = 0

    @property
    def name(self) -> FileName:
        """Level and TXIDs, which name the file."""
        return self.level, self.min_txid, self.max_txid

    @property
    def is_snapshot(self) -> bool:
        """True if the file has the whole database: level 9, from TXID 1 on."""
        return self.level == SNAPSHOT_LEVEL and self.min_txid == 1

    def __str__(self) -> str:
        return f"L{self.level}/{self.min_txid:016x}-{self.max_txid:016x}"
