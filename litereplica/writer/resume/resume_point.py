"""Taking hold of a database: the held read, and what must be published first.

Under the barrier, so that nothing moves: the read is taken, SQLite tells how much of the WAL is in the database, and
the WAL is scanned. What follows from that and from the replica's newest file is decided outside, in `decide`.

    the replica is empty                                        the whole database is TXID 1
    its newest file was made from this WAL's frames             go on behind them
    the database file is as at our last checkpoint,             all that the WAL has is new
      and the newest file is still that of then
    anything else                                               the pages that differ are the next TXID

Whoever takes over from another writer is held to more: what its database holds must *continue* the newest file
(`require_continuation`). A copy that was left behind would otherwise be published over what is newer than it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from enum import Enum

from litereplica.errors import ConflictError, EnvironmentProblem
from litereplica.format.names import format_txid
from litereplica.ltxstore.store import LTXStore, OpenedFile
from litereplica.writer.database.published import Published, Version
from litereplica.writer.database.sqlite_database import Source, WalState
from litereplica.writer.database.state_directory import CheckpointMark, FileIdentity
from litereplica.writer.database.wal_follower import WalTail
from litereplica.writer.publish.outage_log import OutageLog
from litereplica.writer.publish.page_checksums import PageChecksums
from litereplica.writer.publish.publisher import Publisher
from litereplica.writer.publish.wal_match import check_page_size, frames_covered, newest_file, same_generation
from litereplica.writer.resume.replica_pages import keep_sums, known_pages

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
        source.release_read()
        state = source.take_read()
        tail.reopen()
        small = tail.file_size <= SCAN_UNDER_BARRIER_BYTES
        if small:
            _attach(tail, state)
        hold = Hold(small and state.sealed, source.page_count(), source.identity())
    finally:
        source.end_barrier()
    if not small:
        _attach(tail, state)
        # Without a committed frame in the WAL (an import that was rolled back or killed) the file is all there is.
        hold = replace(hold, sealed=tail.committed == 0)
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
    published = Published.of(file.header, file.file_checksum)
    frames = await frames_covered(store, file, tail) if same_file else None
    if frames is not None:
        tail.advance(frames)
        return Start.WAL, published
    if mark == CheckpointMark(store.url, remote.txid, hold.identity) and not same_generation(file.header, tail):
        return Start.CHECKPOINT, published
    return Start.DIFFERENCE, published


async def require_continuation(
    store: LTXStore, source: Source, publisher: Publisher, *, hold: Hold, sums: PageChecksums, watch: OutageLog
) -> None:
    """After `Start.DIFFERENCE`: raise `ConflictError` unless the database continues the replica's newest version.

    It does when we published that version, from this very file, as the sums of its pages tell; when it is that version
    byte for byte; and when the file alone is, and the WAL has all that was committed since. Nothing is kept of
    what is read for a database that does not: a later start must not find sums that we never published.
    """
    last = publisher.last.version
    if _published_it(sums, last):
        return
    known = await known_pages(store, source, sums, last=last, watch=watch, keep=False)
    if known is not None:
        commits = [hold.page_count if hold.sealed else None]
        if not hold.sealed and hold.identity.size == len(known) * source.page_size:
            commits.append(len(known))
        for commit in commits:
            if not await publisher.differs(known, commit=commit):
                await keep_sums(source, sums, last, known)
                return
    restore = shlex.join(["litereplica", "restore", store.url, "-o", str(source.path), "--force"])
    raise ConflictError(
        f"{source.path} does not continue {store.url}, where TXID {format_txid(last.txid)} is newer than what it has",
        hint=f"restore it first ({restore}), or start without --wait-lease to publish this database as the newest",
    )


def _published_it(sums: PageChecksums, last: Version) -> bool:
    """The checksum of a version is not known any more when its L0 file has been compacted."""
    own = sums.version
    if own is None or sums.tells_of_another_file:
        return False
    return own == last or (own.txid == last.txid and last.checksum == 0)
