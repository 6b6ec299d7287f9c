"""A primary whose every transaction becomes one LTX file at once: the fastest source of a real replica.

Owns a database in rollback mode, which no other process may open, and the `file://` replica made from it. There is no
WAL and no guessing: after a transaction the file is compared with what it was, and the pages that differ are published
as the L0 file of the next TXID, under its name only when it is whole.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from pathlib import Path
from types import TracebackType

import numpy as np

from litereplica.format.ltx import Header
from litereplica.format.names import Layout, file_key, format_txid
from litereplica.format.sqlite import lock_pgno
from litereplica.testing.ltx_files import encode_file
from litereplica.types import TXID, Pgno


class Publisher:
    """A database below `directory`, and its replica: there, or at `replica`. `setup` is the SQL that makes TXID 1.

    `lineage` is the files' node id: random, or 0 as Litestream has it.

    >>> with Publisher(tmp_path, setup="CREATE TABLE t(x)") as publisher:
    ...     txid = publisher.transaction("INSERT INTO t VALUES (1)")  # TXID 2 is in the store
    ...     with MountedReplica(publisher.url, tmp_path) as mount: ...
    """

    def __init__(
        self,
        directory: Path,
        *,
        setup: str,
        page_size: int = 4096,
        auto_vacuum: int = 0,
        lineage: int | None = None,
        replica: Path | None = None,
    ) -> None:
        self.path = directory / "primary.db"
        self.replica = replica or directory / "replica"
        self.txid: TXID = 0
        self.lineage = secrets.randbits(63) + 1 if lineage is None else lineage
        self._page_size = page_size
        self._content = b""
        directory.mkdir(parents=True, exist_ok=True)
        (self.replica / file_key(Layout.FILE, 0, 1, 1)).parent.mkdir(parents=True)
        self.connection = sqlite3.connect(self.path, isolation_level=None)
        self.connection.execute(f"PRAGMA page_size={page_size}")
        self.connection.execute(f"PRAGMA auto_vacuum={auto_vacuum}")
        self.connection.execute("PRAGMA journal_mode=MEMORY")
        self.connection.execute("PRAGMA synchronous=OFF")
        self.connection.executescript(setup)
        # open until the end: closing it would drop the connection's locks
        self._fd = os.open(self.path, os.O_RDONLY)
        self.publish()

    @property
    def url(self) -> str:
        return f"file://{self.replica}"

    @property
    def content(self) -> bytes:
        """The database file as it was last published."""
        return self._content

    def transaction(self, *statements: str) -> TXID:
        """Run the statements as one transaction and publish it; returns its TXID."""
        self.connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            self.connection.execute(statement)
        self.connection.execute("COMMIT")
        return self.publish()

    def publish(self) -> TXID:
        """Publish what has changed since the last call as one TXID; it is in the store when this returns."""
        content = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        self.txid += 1
        pages = self._changed(content)
        header = Header(
            page_size=self._page_size,
            commit=len(content) // self._page_size,
            min_txid=self.txid,
            max_txid=self.txid,
            timestamp_ms=time.time_ns() // 1_000_000,
            node_id=self.lineage,
        )
        body = encode_file(header, [(pgno, self._page(content, pgno)) for pgno in pages])
        path = self.replica / file_key(Layout.FILE, 0, self.txid, self.txid)
        temporary = path.with_name(f"{format_txid(self.txid)}.tmp")
        temporary.write_bytes(body)
        temporary.rename(path)
        self._content = content
        return self.txid

    def close(self) -> None:
        self.connection.close()
        os.close(self._fd)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _changed(self, content: bytes) -> list[Pgno]:
        common = min(len(content), len(self._content))
        new, old = (
            np.frombuffer(each, np.uint8, common).reshape(-1, self._page_size) for each in (content, self._content)
        )
        changed = [int(row) + 1 for row in np.flatnonzero((new != old).any(axis=1))]
        grown = range(common // self._page_size + 1, len(content) // self._page_size + 1)
        return [pgno for pgno in [*changed, *grown] if pgno != lock_pgno(self._page_size)]

    def _page(self, content: bytes, pgno: Pgno) -> bytes:
        return content[(pgno - 1) * self._page_size : pgno * self._page_size]
