"""Checks that a database file is what was published, and that SQLite can read it.

require_unchanged   before each file, and when the file has changed: a sample of its pages has the checksums of the
                    replica's (`FileWatch` says when)
require_sound       before pages are published that no WAL explains: SQLite finds the database's structure sound
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import apsw
import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.errors import SourceChanged, SourceMalformed
from litereplica.writer.database.file_watch import Doubt
from litereplica.writer.database.published import Published
from litereplica.writer.database.sqlite_database import SQLiteDatabase
from litereplica.writer.database.wal_follower import WalChange
from litereplica.writer.publish.context import WriterContext
from litereplica.writer.publish.page_checksums import UNKNOWN, page_checksum

SAMPLE_PAGES = 256
"""Read and compared in about a millisecond. A database up to this size is compared whole."""
SOUND_WITHIN_S = 10.0
"""Limit for the check of a database that nothing but its WAL is known to have changed: a large one is not read whole
at each start."""


def require_unchanged(context: WriterContext, last: Published) -> None:
    """Raise `SourceChanged` if the file differs from `last`, as far as that is in doubt. Blocks."""
    database = context.database
    differ: list[int] | None = None
    what, doubt = "", Doubt.NONE
    try:
        doubt = database.take_doubt()
        if doubt is Doubt.NONE:
            return
        differ = _differing_pages(context, last, whole=doubt is Doubt.WHOLE)
        what = f"page {differ[0]} is not as it was published" if differ else ""
    except (apsw.CorruptError, apsw.NotADBError) as exc:
        what = str(exc)
    finally:
        if differ is None:
            database.give_back(doubt)
    if what:
        database.distrust()
        raise SourceChanged(f"something else than SQLite wrote to {database.path}: {what}", hint="start again")


def _differing_pages(context: WriterContext, last: Published, *, whole: bool) -> list[int] | None:
    """The pages that differ from `last`, of all or of a sample. None: nothing is known of `last` or of the WAL now."""
    database, wal, checksums = context.database, context.wal, context.checksums
    change = wal.look()
    if change is WalChange.LOST or checksums.version != last.version or last.commit == 0:
        return None
    if change is WalChange.FRAMES:
        wal.scan()
    # SQLite counts no frames of a WAL that was emptied, and we follow it until the next commit
    backfilled = wal.position if wal.is_sealed else database.wal_state().backfilled
    count = last.commit if whole else SAMPLE_PAGES
    pages = wal.settled_pages(count, backfilled=backfilled, commit=last.commit)
    try:
        known = checksums.at(pages)
    except OSError:
        return None
    found = np.fromiter(_checksums(database, pages), np.uint64, len(pages))
    return [int(pgno) for pgno in pages[(known != UNKNOWN) & (known != found)]]


def _checksums(database: SQLiteDatabase, pages: NDArray[np.uint32]) -> Iterator[int]:
    """Yield the checksums of pages of the file. Raises `trio.Cancelled` now and then."""
    for row, pgno in enumerate(pages.tolist()):
        if row % SAMPLE_PAGES == 0:
            trio.from_thread.check_cancelled()
        yield page_checksum(database.read_page(pgno))


def require_sound(database: SQLiteDatabase, *, in_doubt: bool) -> None:
    """Raise `SourceMalformed` if SQLite finds the structure of the database damaged. Blocks.

    The check ends after `SOUND_WITHIN_S` unless the database is `in_doubt`.
    """
    until_s = time.monotonic() + SOUND_WITHIN_S

    def give_up() -> bool:
        trio.from_thread.check_cancelled()
        return not in_doubt and time.monotonic() > until_s

    found = database.structure_problem(give_up)
    if found is not None:
        raise SourceMalformed(
            f"{database.path} is malformed: {found}",
            hint="run 'PRAGMA integrity_check' on it, and restore it or mend it; its replica stays as it is",
        )
