"""A mount whose replica is scripted: the WAL protocol alone, as fast as it goes.

    python -m tests.helpers.protocol_mount MOUNTPOINT ADVANCES [--hold-write-lock-briefly | --no-floor-mark]

The database has two tables of one row, `a` and `b`; each advance sets both to the number of that advance. It prints
`ready`, waits for a line on stdin, makes the advances, and prints what it did as JSON. The two options take one of
the protocol's safeguards away, so that a test can tell whether it would notice.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from pathlib import Path

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.file_events import Changes
from litereplica.format import walindex
from litereplica.format.sqlite import DatabaseHeader
from litereplica.fuse import live as live_module
from litereplica.fuse.live import LiveDatabase
from litereplica.fuse.mount import Session
from litereplica.fuse.options import MountOptions
from litereplica.replica.file_holders import FileHolders
from litereplica.replica.observer import ReplicaObserver
from litereplica.replica.page_map import LOCATION, PageMap
from litereplica.replica.snapshot import Snapshot, Update
from litereplica.replica.statistics import HydrationState, HydrationStatistics, ReplicaStatistics
from litereplica.types import FileInfo, Pos

DIGITS = 10


class ScriptedReplica:
    """The part of `Replica` that a mount uses, over a database whose versions are made on demand."""

    newest_txid = 0
    is_behind = False

    def __init__(self) -> None:
        self.holders = FileHolders()
        self._pages = template()
        self._page_size = len(self._pages[0])
        self._changing = np.array([i + 1 for i, page in enumerate(self._pages) if marker() in page], np.uint32)
        self.snapshot = self._at(1)

    def _at(self, txid: int) -> Snapshot:
        count = len(self._pages)
        pages = PageMap.empty(self._page_size).applied(
            np.arange(1, count + 1, dtype=np.uint32), self._locations(count, txid), commit=count
        )
        return Snapshot(Pos(txid), 0, self._page_size, count, pages)

    @staticmethod
    def _locations(count: int, txid: int) -> NDArray[np.void]:
        rows = np.zeros(count, LOCATION)
        rows["file"], rows["size"], rows["offset"] = 1, 1, txid
        return rows

    def watch(self) -> AbstractAsyncContextManager[Changes]:
        return nullcontext(Changes())

    async def poll(self) -> Update:
        self.snapshot = self._at(self.snapshot.pos.txid + 1)
        return Update(self.snapshot, self._changing, relocated=False)

    def ltx_files(self) -> list[FileInfo]:
        return []

    def subscribe(self, observer: ReplicaObserver) -> None:
        pass

    async def heal(self) -> None:
        return None

    def read_now(self, first: int, last: int, pages: PageMap) -> bytearray:
        txids = pages.lookup(np.arange(first, last + 1, dtype=np.uint32))["offset"].tolist()
        return bytearray(b"").join(
            self._pages[pgno - 1].replace(marker(), b"%0*d" % (DIGITS, txid)) for pgno, txid in enumerate(txids, first)
        )

    async def read(
        self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], *, around: PageMap | None = None
    ) -> list[bytes]:
        txids = locations["offset"].tolist()
        return [
            self._pages[pgno - 1].replace(marker(), b"%0*d" % (DIGITS, txid))
            for pgno, txid in zip(pgnos.tolist(), txids, strict=True)
        ]

    def statistics(self) -> ReplicaStatistics:
        """Nothing but the position: a scripted replica has no store."""
        snapshot = self.snapshot
        hydration = HydrationStatistics(
            state=HydrationState.OFF, pages=0, pages_missing=0, pages_fetched=0, files_verified=0
        )
        return ReplicaStatistics(
            pos=snapshot.pos,
            timestamp_ms=0,
            page_size=snapshot.page_size,
            commit=snapshot.commit,
            newest_txid=snapshot.pos.txid,
            behind_bytes=0,
            polls=0,
            heals=0,
            last_success_at=0.0,
            last_progress_at=0.0,
            staleness_s=0.0,
            polls_behind=0,
            reason="",
            last_error="",
            pages_from_memory=0,
            pages_from_disk=0,
            pages_from_store=0,
            files=1,
            requests=None,
            ledger={},
            is_priced=False,
            hydration=hydration,
        )


def marker() -> bytes:
    return b"#" * DIGITS


def template() -> list[bytes]:
    """Pages of a database whose two values are markers."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "t.db"
        connection = sqlite3.connect(path)
        for table in "ab":
            connection.execute(f"CREATE TABLE {table}(value TEXT)")
            connection.execute(f"INSERT INTO {table} VALUES (?)", (marker().decode(),))
        connection.commit()
        connection.close()
        data = path.read_bytes()
    size = DatabaseHeader.decode(data).page_size
    return [data[i : i + size] for i in range(0, len(data), size)]


async def drive(session: Session, live: LiveDatabase, replica: ScriptedReplica, advances: int) -> None:
    """Make the advances once a line has arrived on stdin, report, and end the mount when stdin ends."""
    await trio.to_thread.run_sync(sys.stdin.readline)
    started = trio.current_time()
    for _ in range(advances):
        await live.apply(await replica.poll())
    seconds = trio.current_time() - started
    statistics = live.statistics()
    print(json.dumps({"seconds": seconds, "restarts": statistics.restarts, "txid": statistics.pos.txid}), flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)
    await session.stop(gently=False)


def weaken(option: str) -> None:
    """Take one safeguard away."""
    if option == "--no-floor-mark":
        live_module._FLOATING_MARKS = range(1, walindex.READ_MARKS)
    elif option == "--hold-write-lock-briefly":
        publish = LiveDatabase._publish

        async def briefly(self: LiveDatabase, commit: int) -> None:
            assert self._locks is not None
            while not self._locks.try_exclusive(walindex.LOCK_WRITE):  # noqa: ASYNC110
                await trio.sleep(0.0001)
            await publish(self, commit)
            self._locks.unlock(walindex.LOCK_WRITE)

        LiveDatabase._publish = briefly  # type: ignore[method-assign]


async def main(path: Path, advances: int) -> None:
    replica = ScriptedReplica()
    options = MountOptions(url="scripted", path=path, name="app.db", poll_interval_s=1e6)
    session = Session(options, replica, past=None)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:

        def ready() -> None:
            print("ready", flush=True)
            nursery.start_soon(drive, session, session.live, replica, advances)

        await session.run(ready)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    for option in sys.argv[3:]:
        weaken(option)
    with suppress(KeyboardInterrupt):
        trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
