"""The newest file of a replica, as a writer remembers it: its TXID, the database's size and the file's checksum."""

from __future__ import annotations

from dataclasses import dataclass

from litereplica.format.ltx import Header
from litereplica.types import TXID


@dataclass(frozen=True, slots=True)
class Version:
    """One content of a replica: its newest TXID, and the checksum of the L0 file that has it (0: not known)."""

    txid: TXID
    checksum: int


@dataclass(frozen=True, slots=True)
class Published:
    """The newest file of the replica. `commit` is the database's size in pages there, `timestamp_ms` the header's,
    `checksum` that of the file (0: not known)."""

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
        return Version(self.txid, self.checksum)
