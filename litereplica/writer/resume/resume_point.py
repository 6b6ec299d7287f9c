"""Where publishing continues when a database is attached, and what must be published first.

resume               the first time a process attaches: takes the lease, reads the newest file of the replica,
                     takes hold of the database, and decides
take_hold            under the barrier, so that nothing moves: takes the held read, asks SQLite how much of the
                     WAL is in the database file, and scans the WAL
decide               compares the newest file with the WAL and the checkpoint mark:

    the replica is empty                                   the whole database is TXID 1
    its newest file was made from this WAL's frames        continue after them, if the database file is as at our last
                                                             checkpoint; else the pages that differ are the next TXID
    the database file is as at our last checkpoint,        all frames of the WAL are new
      and the newest file is still that of then
    anything else                                          the pages that differ are the next TXID

require_continuation the database must continue the newest file. Not asked if its node id shows that it is ours, or the
                     WAL continues it. A copy that was left behind, by a failover for instance, would otherwise be
                     published over what its successor wrote.
publish_content      publishes the whole database or the pages that differ
"""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass, replace
from enum import Enum

from litereplica.errors import ConflictError, DamagedFile, EnvironmentProblem, NotFound
from litereplica.format.names import format_txid
from litereplica.ltxstore.outdated_listing import is_gone
from litereplica.ltxstore.store import LTXStore, OpenedFile
from litereplica.restore.provenance import read_provenance
from litereplica.storage.url import same_place
from litereplica.types import FileInfo
from litereplica.writer.database.connections import WalState
from litereplica.writer.database.parked import Parked
from litereplica.writer.database.published import Published, Version
from litereplica.writer.database.sqlite_database import SQLiteDatabase
from litereplica.writer.database.state_directory import CheckpointMark, FileIdentity, Lineage
from litereplica.writer.database.wal_follower import WalFollower
from litereplica.writer.publish.context import WriterContext
from litereplica.writer.publish.page_checksums import PageChecksums
from litereplica.writer.publish.publisher import Prepared, Publisher
from litereplica.writer.publish.source_check import require_sound
from litereplica.writer.publish.wal_match import check_page_size, frames_covered, newest_file, same_generation
from litereplica.writer.resume.replica_pages import carry_on, keep_checksums, known_pages, restored_pages

log = logging.getLogger(__name__)

SCAN_UNDER_BARRIER_BYTES = 64 << 20
"""A larger WAL takes more than about 0.1 s: it is scanned when others may commit again."""
BARRIER_ATTEMPTS = 50
"""Of 0.1 s each: a busy application lets us in well before."""


class Start(Enum):
    """How publishing begins."""

    FIRST = "first snapshot"
    WAL = "resumed from the WAL"
    CHECKPOINT = "resumed from the last checkpoint"
    COMPARED = "comparing the pages, because the database file has changed since the last checkpoint"
    DIFFERENCE = "publishing what differs, because the WAL does not reach back to the newest file"


@dataclass(frozen=True, slots=True)
class Hold:
    """The database under the barrier. `sealed`: its file is complete, and stays so while the read is held.

    `page_count` is the size in pages as the held read sees it, `identity` that of the database file. `goes_on`: the
    WAL goes on from the replica. `in_doubt`: the file was replaced or overwritten since it was published.
    """

    sealed: bool
    page_count: int
    identity: FileIdentity
    goes_on: bool = False
    in_doubt: bool = False


@dataclass(frozen=True, slots=True)
class Remote:
    """The replica's newest TXID (0: none), and the level 0 file that ends there, if there is one."""

    txid: int
    file: OpenedFile | None

    @property
    def node_id(self) -> int:
        """That of the newest file: who published it. 0: not known."""
        return self.file.header.node_id if self.file is not None else 0


async def resume(context: WriterContext, publisher: Publisher, parked: Parked | None) -> tuple[Start, Hold]:
    """Attach for the first time: take the lease, then find out what is published. Sets where `publisher` continues.

    `parked` is the state in which this process left the database, if no other process has had it since. Raises
    `UsageError`, `ConflictError`, `EnvironmentProblem`, and the errors of the store.
    """
    database, checksums, state = context.database, context.checksums, context.state
    lineage, mark = await database.run(lambda: (state.lineage(context.store.url), state.read_mark()))
    with context.outages.waiting():
        await context.lease.begin()
        remote = await _remote_as_parked(context, parked) or await read_remote(context.store)
        await _require_listed(context, remote, lineage=lineage, mark=mark)
    hold = await database.run(lambda: take_hold(database, context.wal))
    is_noted = lineage is not None and lineage.has(remote.node_id)
    was_elsewhere = not is_noted and context.lineage is not None and context.lineage.has(remote.node_id)
    is_ours, is_replaced = is_noted or was_elsewhere, checksums.are_of_another_file or was_elsewhere
    with context.outages.waiting():
        start, last = await decide(
            context.store, database, context.wal, hold=hold, remote=remote,
            mark=mark if is_noted and not context.verify_source else None, same_file=not is_replaced,
        )  # fmt: skip
        publisher.resume(last)
        if remote.file is not None and start is not Start.DIFFERENCE:
            await carry_on(context, newest=remote.file.info, last=last.version)
    if start is Start.DIFFERENCE:
        if await database.run(lambda: _was_restored_from(context, remote)):
            is_ours = False
        elif not is_ours:
            await require_continuation(context, publisher, hold)
        elif is_replaced:
            is_ours = False
            log.warning(
                "%s was replaced while it was not replicated: its content follows TXID %s of %s as the newest state",
                database.path, format_txid(last.txid), context.store.url,
            )  # fmt: skip
    if lineage is None or not is_ours or was_elsewhere:
        lineage = await database.run(lambda: state.begin_lineage(context.store.url, previous=remote.node_id))
    publisher.begin_lineage(lineage)
    return start, replace(hold, goes_on=start is Start.COMPARED, in_doubt=is_replaced or context.in_doubt)


async def _require_listed(
    context: WriterContext, remote: Remote, *, lineage: Lineage | None, mark: CheckpointMark | None
) -> None:
    """Raise `TransientStorageError` if the listing lacks the newest file that this writer knows to have published.

    A replica that somebody has deleted is begun anew.
    """
    url = context.store.url
    known = mark.txid if mark is not None and same_place(mark.url, url) else 0
    if context.checksums.version is not None and lineage is not None:
        known = max(known, context.checksums.version.txid)
    if await is_gone(context.store, known, newest=remote.txid) and remote.txid == 0:
        log.warning("the replica at %s, published up to TXID %s, is gone: beginning anew", url, format_txid(known))


async def publish_content(context: WriterContext, publisher: Publisher, hold: Hold) -> Prepared | None:
    """Publish the whole database, or its pages that differ from the replica. Raises as `publish_difference`."""
    commit = hold.page_count if hold.sealed else None
    if publisher.last.txid == 0:
        return await publisher.publish_whole(commit=commit)
    known = None if context.verify_source else await restored_pages(context, last=publisher.last)
    if known is None:
        known = await known_pages(context, last=publisher.last.version)
    if known is None:
        await context.database.run(lambda: require_sound(context.database, in_doubt=hold.in_doubt))
        return await publisher.publish_whole(commit=commit)
    return await publisher.publish_difference(known, commit=commit, goes_on=hold.goes_on, in_doubt=hold.in_doubt)


async def _remote_as_parked(context: WriterContext, parked: Parked | None) -> Remote | None:
    """Returns the replica as it was when the database was parked, if its epoch is the same and its file still there:
    one read instead of ten listings."""
    if parked is None or parked.last is None or parked.epoch != context.lease.epoch():
        return None
    try:
        file = await context.store.open(FileInfo(0, parked.txid, parked.txid, 0))
    except (NotFound, DamagedFile):
        return None
    found = Published.of(file.header, file.file_checksum)
    return Remote(parked.txid, file) if found == parked.last else None


async def read_remote(store: LTXStore) -> Remote:
    """Reads the newest TXID and its file: ten listings, and one or a few reads. A damaged file counts as none."""
    txid, info = await newest_file(store)
    try:
        return Remote(txid, await store.open(info) if info is not None else None)
    except DamagedFile as exc:
        log.warning("%s; it does not show who published it", exc.message)
        return Remote(txid, None)


def take_hold(database: SQLiteDatabase, wal: WalFollower) -> Hold:
    """Take the held read, anew if it is held, and attach `wal`. Blocks. Raises `EnvironmentProblem`."""
    if not any(database.begin_barrier() for _ in range(BARRIER_ATTEMPTS)):
        raise EnvironmentProblem(
            f"{database.path} is locked by another program", hint="try again when its transaction has ended"
        )
    try:
        database.release_read()
        state = database.take_read()
        wal.reopen()
        small = wal.file_size <= SCAN_UNDER_BARRIER_BYTES
        if small:
            _attach(wal, state)
        hold = Hold(small and state.sealed, database.page_count(), database.identity())
    finally:
        database.end_barrier()
    if not small:
        _attach(wal, state)
        # Without a committed frame in the WAL (an import that was rolled back or killed) the file is all there is.
        hold = replace(hold, sealed=wal.committed == 0)
    wal.seal(wal.committed if hold.sealed else None)
    wal.note_backfilled(state.backfilled)
    return hold


def _attach(wal: WalFollower, state: WalState) -> None:
    wal.attach()
    if wal.committed < state.log:
        raise EnvironmentProblem(
            f"{wal.path} has {wal.committed} valid frames, SQLite counts {state.log}",
            hint="run 'PRAGMA integrity_check' on the database",
        )


async def decide(
    store: LTXStore,
    database: SQLiteDatabase,
    wal: WalFollower,
    *,
    hold: Hold,
    remote: Remote,
    mark: CheckpointMark | None,
    same_file: bool,
) -> tuple[Start, Published]:
    """Returns how publishing begins and the newest file of the replica. Advances `wal` over what is published.

    `same_file`: as far as is known, the database file is the one from which the replica was written. Raises
    `UsageError` if page sizes differ.
    """
    if remote.txid == 0:
        return Start.FIRST, Published()
    file = remote.file
    if file is None:
        return Start.DIFFERENCE, Published(remote.txid)
    check_page_size(file.header, database.page_size, url=store.url)
    published = Published.of(file.header, file.file_checksum)
    frames = await frames_covered(store, file, wal) if same_file else None
    as_left = mark is not None and mark.database == hold.identity and same_place(mark.url, store.url)
    if frames is not None:
        wal.advance(frames)
        return Start.WAL if as_left else Start.COMPARED, published
    if mark is not None and as_left and mark.txid == remote.txid and not same_generation(file.header, wal):
        return Start.CHECKPOINT, published
    return Start.DIFFERENCE, published


async def require_continuation(context: WriterContext, publisher: Publisher, hold: Hold) -> None:
    """After `Start.DIFFERENCE`: raise `ConflictError` unless the database continues the replica's newest version.

    It does if the checksums beside it say that this file was published as that version, if it equals that version
    byte for byte, or if its file alone does and the WAL has all later commits. The checksums of a version that the
    database does not continue are not kept: a later start must not take them for a version that we published. With
    `context.take_over` a database that does not is published all the same.
    """
    database, checksums = context.database, context.checksums
    last = publisher.last.version
    if _published_it(checksums, last):
        return
    known = await known_pages(context, last=last, keep=False)
    if known is not None:
        commits = [hold.page_count if hold.sealed else None]
        if not hold.sealed and hold.identity.size == len(known) * database.page_size:
            commits.append(len(known))
        for commit in commits:
            if not await publisher.differs(known, commit=commit):
                await keep_checksums(context, last, known)
                return
    if context.take_over:
        log.warning(
            "%s does not continue TXID %s of %s, which another writer published: publishing it as the newest state",
            database.path, format_txid(last.txid), context.store.url,
        )  # fmt: skip
        return
    restore = shlex.join(["litereplica", "restore", context.store.url, "-o", str(database.path), "--force"])
    raise ConflictError(
        f"{database.path} does not continue {context.store.url}, whose newest TXID {format_txid(last.txid)} was"
        " published by another writer, or by an unknown one",
        hint=f"go on from there ({restore}; commits that only this database has are lost), or publish this database as"
        " the newest state with 'litereplica replicate --take-over' (the other's stays in the history)",
    )


def _was_restored_from(context: WriterContext, remote: Remote) -> bool:
    """True if the database file was restored from the newest file that the replica has now. Blocks."""
    proof = read_provenance(context.database.path)
    if proof is None or remote.file is None or (proof.url, proof.txid) != (context.store.url, remote.txid):
        return False
    if proof.checksum:
        return proof.checksum == remote.file.file_checksum
    return proof.lineage != 0 and proof.lineage == remote.node_id


def _published_it(checksums: PageChecksums, last: Version) -> bool:
    """True if this database file was published as `last`. (The checksum of a version is lost with its level 0 file.)"""
    own = checksums.version
    if own is None or checksums.are_of_another_file:
        return False
    return own == last or (own.txid == last.txid and last.checksum == 0)
