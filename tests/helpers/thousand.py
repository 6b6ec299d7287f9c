"""A long history with everything in it: DDL, VACUUM, full text, auto-vacuum, large and small transactions.

Beside the L0 files there are those that compaction and snapshots make, as in a store of some age; no L0 file is
deleted, so that each TXID is a point. What the primary was at each of them is kept as a digest.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from litereplica.format.compactor import FramesInput, compact
from litereplica.format.decoder import decode_file
from litereplica.format.names import SNAPSHOT_LEVEL, Layout, file_key
from litereplica.testing.ltx_files import compaction_input
from litereplica.types import TXID
from tests.helpers.publisher import Publisher
from tests.helpers.workload import SETUP, Workload

COMPACT_EVERY = {1: 10, 2: 50, SNAPSHOT_LEVEL: 200}
"""TXIDs of a file, by level; a snapshot begins at 1."""

_VERSIONS = slice(18, 20)


class LongHistory:
    """`txids` transactions, published below `directory`. `digests[txid]` is what `digest` makes of the database."""

    def __init__(
        self, directory: Path, *, txids: int, page_size: int = 512, auto_vacuum: int = 2, seed: int = 1
    ) -> None:
        self.publisher = Publisher(directory, setup=SETUP, page_size=page_size, auto_vacuum=auto_vacuum)
        self.digests: dict[TXID, str] = {1: digest(self.publisher.content)}
        workload = Workload(self.publisher.connection, page_size=page_size, seed=seed)
        while self.publisher.txid < txids:
            workload.step()
            txid = self.publisher.publish()
            self.digests[txid] = digest(self.publisher.content)
            self._compact(txid)

    @property
    def url(self) -> str:
        return self.publisher.url

    def close(self) -> None:
        self.publisher.close()

    def _compact(self, txid: TXID) -> None:
        for level, every in COMPACT_EVERY.items():
            if txid % every == 0:
                source = max(
                    (each for each in COMPACT_EVERY if each < level and every % COMPACT_EVERY[each] == 0), default=0
                )
                step = COMPACT_EVERY.get(source, 1)
                first = 1 if level == SNAPSHOT_LEVEL else txid - every + 1
                parts = [(low, low + step - 1) for low in range(first, txid + 1, step)]
                inputs = [self._input(source, *part) for part in parts]
                path = self._path(level, first, txid)
                path.parent.mkdir(exist_ok=True)
                temporary = path.with_suffix(".tmp")
                temporary.write_bytes(b"".join(compact(inputs)))
                temporary.rename(path)

    def _input(self, level: int, first: TXID, last: TXID) -> FramesInput:
        file = decode_file(self._path(level, first, last).read_bytes())
        return compaction_input(file.header, zip(file.index.pgno.tolist(), file.pages, strict=True))

    def _path(self, level: int, first: TXID, last: TXID) -> Path:
        return self.publisher.replica / file_key(Layout.FILE, level, first, last)


def digest(database: bytes) -> str:
    """SHA-256 of a database file, whatever its journal mode."""
    masked = bytearray(database)
    masked[_VERSIONS] = b"\1\1"
    return hashlib.sha256(masked).hexdigest()
