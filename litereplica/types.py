"""The few values that every layer speaks of. No behaviour beyond formatting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

TXID: TypeAlias = int
"""A transaction ID of LTX: 1, 2, 3, … It counts published files, not SQLite commits."""

Pgno: TypeAlias = int
"""A SQLite page number, 1-based."""


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
    """One LTX file of a store, as a listing tells of it.

    `size` is in bytes. `modified_ms` is what the store says of its age (milliseconds since the epoch):
    the header's timestamp on `file://`, the time of upload on S3.
    """

    level: int
    min_txid: TXID
    max_txid: TXID
    size: int
    modified_ms: int = 0

    def __str__(self) -> str:
        return f"L{self.level}/{self.min_txid:016x}-{self.max_txid:016x}"
