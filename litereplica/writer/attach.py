"""Taking hold of a database: the held read, and what must be published first.

Under the barrier, so that nothing moves: the read is taken, SQLite tells how much of the WAL is in the database, and
the WAL is scanned. What follows from that and from the replica's newest file is decided outside, in `decide`.

    the replica is empty                                        the whole database is TXID 1
    its newest file was made from this WAL's frames             go on behind them
    the database file is as at our last checkpoint,             all that the WAL has is new
      and the newest file is still that of then
    anything else                                               the pages that differ are the next TXID
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from litereplica.errors import EnvironmentProblem
from litereplica.ltxstore.store import LTXStore, OpenedFile
from litereplica.writer.crash import CrashPoint, crash_point
from litereplica.writer.publisher import Published
from litereplica.writer.resume import check_page_size, frames_covered, newest_file, same_generation
from litereplica.writer.source import Source, WalState
from litereplica.writer.state import CheckpointMark, FileIdentity
from litereplica.writer.wal_tail import WalTail

SCAN_UNDER_BARRIER_BYTES = 64 << 20
"""A larger WAL takes more than about 0.1 s: it is scanned when others may commit again."""
BARRIER_ATTEMPTS = 50
"""Of 0.1 s each: a busy application lets us in well before."""


class Start(Enum):
    """How publishing begins."""

    FIRST = "first snapshot"
    WAL = "resumed from the WAL"
    CHECKPOINT = "resumed from the last checkpoint"
    DIFFERENCE = "publishing what differs, because the WAL does not reach back to the newest file"


@dataclass(frozen=True, slots=True)
class Hold:
    """What was found under the barrier. `sealed`: the database file is complete, as long as the read is held."""

    sealed: bool
    page_count: int
    identity: FileIdentity


@dataclass(frozen=True, slots=True)
class Remote:
    """The replica's newest TXID (0: none), and its L0 file if that is what has it."""

    txid: int
    file: OpenedFile | None


async def read_remote(store: LTXStore) -> Remote:
    """Ten listings, and one or a few reads."""
    txid, info = await newest_file(store)
    return Remote(txid, await store.open(info) if info is not None else None)


def take_hold(source: Source, tail: WalTail) -> Hold:
    """Take the held read, anew if it is held, and attach `tail` to the WAL. Blocks."""
    if not any(source.begin_barrier() for _ in range(BARRIER_ATTEMPTS)):
        raise EnvironmentProblem(
            f"{source.path} is locked by another program", hint="try again when its transaction has ended"
        )
    try:
        crash_point(CrashPoint.START_BARRIER_BEGUN)
        source.release_read()
        state = source.take_read()
        crash_point(CrashPoint.START_READ_TAKEN)
        tail.reopen()
        small = tail.file_size <= SCAN_UNDER_BARRIER_BYTES
        if small:
            _attach(tail, state)
        hold = Hold(small and state.sealed, source.page_count(), source.identity())
    finally:
        source.end_barrier()
    if not small:
        _attach(tail, state)
    tail.seal(tail.committed if hold.sealed else None)
    return hold


def _attach(tail: WalTail, state: WalState) -> None:
    tail.attach()
    if tail.committed < state.log:
        raise EnvironmentProblem(
            f"{tail.path} has {tail.committed} valid frames, SQLite counts {state.log}",
            hint="run 'PRAGMA integrity_check' on the database",
        )


async def decide(
    store: LTXStore,
    source: Source,
    tail: WalTail,
    *,
    hold: Hold,
    remote: Remote,
    mark: CheckpointMark | None,
    same_file: bool,
) -> tuple[Start, Published]:
    """How to begin, and what is published already; `tail` is advanced over it. Raises `UsageError`.

    `same_file`: the database file is not known to be another one than that which was published.
    """
    if remote.txid == 0:
        return Start.FIRST, Published()
    file = remote.file
    if file is None:
        return Start.DIFFERENCE, Published(remote.txid)
    check_page_size(file.header, source.page_size, url=store.url)
    published = Published.of(file)
    frames = await frames_covered(store, file, tail) if same_file else None
    if frames is not None:
        tail.advance(frames)
        return Start.WAL, published
    if mark == CheckpointMark(store.url, remote.txid, hold.identity) and not same_generation(file.header, tail):
        return Start.CHECKPOINT, published
    return Start.DIFFERENCE, published
