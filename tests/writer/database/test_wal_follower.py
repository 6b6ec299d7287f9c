"""The tail of a WAL that another process writes, restarts and truncates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from litereplica.format.sqlite import lock_pgno
from litereplica.format.wal import FRAME_HEADER_SIZE, HEADER_SIZE
from litereplica.writer.database.wal_follower import FROM_DATABASE, WalChange, WalFollower
from tests.format.test_wal import make_wal
from tests.helpers.app import Application

pytestmark = pytest.mark.slow

FRAME = FRAME_HEADER_SIZE + 4096


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Application]:
    with Application(tmp_path / "app.db") as application:
        yield application


@pytest.fixture
def tail(app: Application) -> Iterator[WalFollower]:
    tail = WalFollower(app.database.with_name("app.db-wal"))
    yield tail
    tail.close()


def follow(tail: WalFollower) -> None:
    """Take everything as published."""
    tail.scan()
    tail.advance(tail.committed)


async def attached(app: Application, tail: WalFollower) -> None:
    await app("CREATE TABLE t (x)")
    tail.reopen()
    tail.attach()
    follow(tail)


async def test_new_transactions_are_seen_once(app: Application, tail: WalFollower) -> None:
    await attached(app, tail)
    assert tail.look() is WalChange.NONE
    before = tail.position
    await app("INSERT INTO t VALUES (1)")
    assert tail.look() is WalChange.FRAMES
    tail.scan()
    batch = tail.batch(max_bytes=1 << 20, previous_commit=2)
    assert batch is not None
    assert (batch.first, batch.end, batch.commit) == (before, tail.committed, 2)
    follow(tail)
    assert tail.look() is WalChange.NONE
    assert tail.batch(max_bytes=1 << 20, previous_commit=2) is None


async def test_transaction_under_way_is_not_in_a_batch(app: Application, tail: WalFollower) -> None:
    await attached(app, tail)
    await app("PRAGMA cache_size = 5")
    await app("BEGIN")
    await app("INSERT INTO t VALUES (zeroblob(200000))")
    assert tail.look() is WalChange.FRAMES
    tail.scan()
    assert tail.committed == tail.position
    await app("COMMIT")
    assert tail.look() is WalChange.FRAMES
    tail.scan()
    assert tail.committed > tail.position


async def test_wal_used_again_from_its_start_at_the_same_size_is_seen(app: Application, tail: WalFollower) -> None:
    await attached(app, tail)
    size = tail.file_size
    await app("PRAGMA wal_checkpoint(PASSIVE)")
    tail.seal(tail.position)
    await app("INSERT INTO t VALUES (1)")
    assert tail.file_size == size
    assert tail.look() is WalChange.FRAMES
    assert tail.position == 0
    tail.scan()
    assert tail.committed == 1


async def test_restart_is_a_loss_unless_all_before_it_was_published(app: Application, tail: WalFollower) -> None:
    await attached(app, tail)
    await app("INSERT INTO t VALUES (1)")
    tail.scan()
    await app("PRAGMA wal_checkpoint(PASSIVE)")
    tail.seal(tail.committed)
    await app("INSERT INTO t VALUES (2)")
    assert tail.look() is WalChange.LOST
    assert not tail.is_intact()


async def test_truncation_is_a_loss_unless_all_before_it_was_published(app: Application, tail: WalFollower) -> None:
    await attached(app, tail)
    await app("PRAGMA wal_checkpoint(TRUNCATE)")
    assert tail.file_size == 0
    assert tail.look() is WalChange.LOST
    tail.seal(tail.position)
    assert tail.look() is WalChange.NONE
    await app("INSERT INTO t VALUES (2)")
    assert tail.look() is WalChange.FRAMES


async def test_committed_frame_that_was_overwritten_is_a_loss(app: Application, tail: WalFollower) -> None:
    await attached(app, tail)
    with tail.path.open("r+b") as file:
        file.seek(HEADER_SIZE + (tail.position - 1) * FRAME + 16)
        file.write(b"12345678")
    assert tail.look() is WalChange.LOST


async def test_batch_is_cut_at_a_commit_and_holds_at_least_one_transaction(app: Application, tail: WalFollower) -> None:
    await attached(app, tail)
    start = tail.position
    for _ in range(5):
        await app("INSERT INTO t VALUES (zeroblob(9000))")
    tail.scan()
    each = (tail.committed - start) // 5
    one = tail.batch(max_bytes=1, previous_commit=2)
    two = tail.batch(max_bytes=(2 * each + 1) * FRAME, previous_commit=2)
    assert one is not None
    assert two is not None
    assert one.end - start == each
    assert two.end - start == 2 * each
    assert two.frame.max() == two.end - 1


async def test_grown_pages_come_from_the_newest_earlier_frame_or_from_the_database(
    app: Application, tail: WalFollower
) -> None:
    await attached(app, tail)
    await app("INSERT INTO t VALUES (zeroblob(9000))")
    follow(tail)
    frames_before = tail.position
    await app("INSERT INTO t VALUES (1)")
    tail.scan()
    batch = tail.batch(max_bytes=1 << 20, previous_commit=1)
    assert batch is not None
    assert batch.pgno.tolist() == list(range(2, batch.commit + 1))
    earlier = batch.frame[(batch.frame < frames_before) & (batch.frame != FROM_DATABASE)]
    assert len(earlier) == 2, "the blob's overflow pages are in frames that were published before"


async def test_whole_covers_every_page_but_the_lock_page(app: Application, tail: WalFollower) -> None:
    await attached(app, tail)
    pages = 262_200  # a database beyond 1 GiB
    batch = tail.whole(page_size=4096, commit=pages)
    assert len(batch.pgno) == pages - 1
    assert 262_145 not in batch.pgno
    assert np.all(batch.frame == FROM_DATABASE)


def test_grown_pages_never_include_the_lock_page(tmp_path: Path) -> None:
    """A transaction that grows the database across 1 GiB and whose WAL has page 1 alone."""
    page_size = 65536
    lock = lock_pgno(page_size)
    path = tmp_path / "app.db-wal"
    path.write_bytes(make_wal(page_size, [(1, lock + 2, bytes(page_size))]))
    tail = WalFollower(path)
    tail.reopen()
    try:
        tail.attach()
        batch = tail.batch(max_bytes=1 << 20, previous_commit=lock - 2)
    finally:
        tail.close()
    assert batch is not None
    assert batch.pgno.tolist() == [1, lock - 1, lock + 1, lock + 2]
    assert batch.frame.tolist() == [0, FROM_DATABASE, FROM_DATABASE, FROM_DATABASE]
