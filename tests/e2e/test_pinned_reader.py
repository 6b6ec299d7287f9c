"""A reader that stays: its snapshot stays with it, and nobody else notices."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.testing.mounts import MountedReplica
from tests.helpers.bank import Bank, State, observe

TRANSACTIONS = 200
MAX_LAG = 2
IDLE_CHECKPOINT_DEADLINE_S = 20.0
"""An idle mount backfills after 5 s."""


def state(connection: sqlite3.Connection) -> State:
    return observe(lambda sql: connection.execute(sql).fetchall())


def publish(bank: Bank, mount: MountedReplica, transactions: int) -> None:
    for _ in range(transactions):
        mount.wait_for(bank.step() - MAX_LAG)
    mount.wait_for(bank.publisher.txid)


def connect(mount: MountedReplica) -> sqlite3.Connection:
    return sqlite3.connect(mount.path, isolation_level=None, timeout=0)


@pytest.mark.slow
def test_reader_keeps_its_snapshot_for_200_transactions_and_the_wal_restarts_after_it(tmp_path: Path) -> None:
    bank = Bank.open(tmp_path)
    with bank.publisher, MountedReplica(bank.publisher.url, tmp_path / "mount", poll_interval="10ms") as mount:
        publish(bank, mount, 3)
        pinned_txid = bank.publisher.txid
        with closing(connect(mount)) as pinned, closing(connect(mount)) as other:
            pinned.execute("BEGIN")
            assert state(pinned) == bank.ledger[pinned_txid]
            for _ in range(TRANSACTIONS // 50):
                publish(bank, mount, 50)
                assert state(pinned) == bank.ledger[pinned_txid]
                assert state(other) == bank.ledger[bank.publisher.txid]
                with closing(connect(mount)) as fresh:
                    assert state(fresh) == bank.ledger[bank.publisher.txid]
            assert pinned.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            during = mount.statistics()
            assert during["base"]["txid"] <= pinned_txid
            assert during["restarts"] == 0
            pinned.execute("COMMIT")
            assert state(pinned) == bank.ledger[bank.publisher.txid]
            mount.wait_until(
                lambda: mount.statistics()["restarts"] > 0, within_s=IDLE_CHECKPOINT_DEADLINE_S, what="a WAL restart"
            )
            after = mount.statistics()
            assert after["base"] == after["pos"]
            assert after["wal_frames"] == 0
            for connection in (pinned, other):
                assert state(connection) == bank.ledger[bank.publisher.txid]
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_reader_that_began_behind_a_backfill_is_not_moved_by_the_next(tmp_path: Path) -> None:
    bank = Bank.open(tmp_path)
    with (
        bank.publisher,
        MountedReplica(bank.publisher.url, tmp_path / "mount", poll_interval="10ms") as mount,
        closing(connect(mount)) as first,
        closing(connect(mount)) as second,
    ):
        first.execute("BEGIN")
        begun_first = state(first)
        publish(bank, mount, 100)
        second.execute("BEGIN")
        begun_second = state(second)
        publish(bank, mount, 100)
        first.execute("COMMIT")  # the base may now move up to the second reader, and no farther
        mount.wait_until(
            lambda: mount.statistics()["base"]["txid"] == begun_second[0], within_s=IDLE_CHECKPOINT_DEADLINE_S
        )
        publish(bank, mount, 20)
        assert state(second) == begun_second == bank.ledger[begun_second[0]]
        assert state(first) == bank.ledger[bank.publisher.txid]
        assert begun_first == bank.ledger[begun_first[0]]
        assert mount.statistics()["base"]["txid"] == begun_second[0]
        second.execute("COMMIT")


@pytest.mark.slow
def test_quiet_mount_backfills_its_wal_and_spares_it_for_the_reader_inside(tmp_path: Path) -> None:
    bank = Bank.open(tmp_path)
    with (
        bank.publisher,
        MountedReplica(bank.publisher.url, tmp_path / "mount", poll_interval="10ms") as mount,
        closing(connect(mount)) as reader,
    ):
        publish(bank, mount, 3)
        reader.execute("BEGIN")
        begun = state(reader)
        mount.wait_until(
            lambda: mount.statistics()["base"] == mount.statistics()["pos"],
            within_s=IDLE_CHECKPOINT_DEADLINE_S,
            what="the backfill of an idle mount",
        )
        publish(bank, mount, 10)
        assert state(reader) == begun == bank.ledger[4]
        assert mount.statistics()["restarts"] == 0
        reader.execute("COMMIT")
        publish(bank, mount, 100)
        mount.wait_until(lambda: mount.statistics()["restarts"] > 0, within_s=IDLE_CHECKPOINT_DEADLINE_S)
        assert state(reader) == bank.ledger[bank.publisher.txid]
