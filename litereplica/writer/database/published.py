"""Records of the newest file of a replica, which a writer keeps in memory."""

from __future__ import annotations

from dataclasses import dataclass

from litereplica.format.ltx import Header
from litereplica.types import TXID


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a replica: its newest TXID, and the checksum of the level 0 file of that TXID (0: unknown)."""

    txid: TXID
    checksum: int


@dataclass(frozen=True, slots=True)
class Published:
    """The newest file of a replica.

    `commit` is the database's size in pages, `timestamp_ms` that of the header, `checksum` the file's (0: unknown).
    """

    txid: TXID = 0
    commit: int = 0
    timestamp_ms: int = 0
    checksum: int = 0

    @classmethod
    def of(cls, header: Header, checksum: int) -> Published:
        """The record of the file that has this header and this checksum in its trailer."""
        return cls(header.max_txid, header.commit, header.timestamp_ms, checksum)

    @property
    def version(self) -> Version:
        """TXID and checksum."""
        return Version(self.txid, self.checksum)
