"""The writer is killed between any two of its steps, and started again, whatever the application does meanwhile.

Every point × every workload. Each run begins with a replica, and with commits that were made without a writer; then the
writer that is to be killed works until it is; what follows is committed without one again; and the last writer has to
bring the replica to the application's state. No file of before may have changed, and each TXID of all is a state that
the application had committed, none older than its predecessor.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from litereplica.writer.publish.lease_keeper import LeaseMode
from tests.helpers.app import Application
from tests.helpers.crash_points import WHERE, CrashPoint, owner_of
from tests.helpers.follower import Follower
from tests.helpers.package_source import modules
from tests.helpers.writer_process import MAX_BARRIER_FRAMES, STORE_POINTS, WriterProcess

pytestmark = pytest.mark.slow

DEADLINE_S = 60.0
BURST = 8
"""Rounds without a pause."""
PAUSE_S = 0.08
"""After every fourth burst: long enough to mark a checkpoint."""

AT_A_STOP = {
    CrashPoint.STOPPING,
    CrashPoint.LEASE_RELEASED,
    CrashPoint.SUMS_ON_DISK,
    CrashPoint.CONNECTIONS_CLOSED,
    "lease-release-begun",
    "lease-deleted",
}
AT_A_START = {
    CrashPoint.SOURCE_OPENED,
    CrashPoint.LEASE_TAKEN,
    CrashPoint.START_BARRIER_BEGUN,
    CrashPoint.START_READ_TAKEN,
    CrashPoint.ATTACHED,
    CrashPoint.DIFFERENCE_FOUND,
    "replica-listed",
    "conditions-probed",
    "lease-created",
}
ONCE = {
    CrashPoint.STATE_FILE_WRITTEN,
    CrashPoint.MARK_WRITTEN,
    CrashPoint.READ_RENEWED,
    CrashPoint.MOVED_AHEAD,
    CrashPoint.REST_PUBLISHED,
    CrashPoint.BARRIER_HELD,
}
NEEDS_A_FREE_LEASE = {"conditions-probed", "lease-created"}
BARRIER_FRAMES_OF: dict[str, int] = {CrashPoint.REST_PUBLISHED: 0, CrashPoint.BARRIER_HELD: 1_000_000}
"""These come about only if commits fall into moments that are short; with these limits any does."""

POINTS: list[str] = [*CrashPoint, *STORE_POINTS]


class History:
    """An application's commits, every state of which is known."""

    def __init__(self, directory: Path, setup: str = "") -> None:
        self.app = Application(directory / "app.db", page_size=1024, setup=setup)
        self.committed: list[str] = []
        self._rounds = itertools.count()
        self.app.call("PRAGMA cache_size = 10")
        self.do("CREATE TABLE t (n INTEGER PRIMARY KEY, x)")
        self.do("INSERT INTO t (x) VALUES (randomblob(30000))")

    def do(self, sql: str, *parameters: object) -> None:
        """One transaction."""
        self.app.call(sql, *parameters)
        self.record()

    def record(self) -> None:
        self.committed.append(self.app.digest())

    def online(self) -> None:
        """A round of commits while a writer may be running."""
        self.work(next(self._rounds))

    def work(self, number: int) -> None:
        self.do("INSERT INTO t (x) VALUES (randomblob(900))")
        self.do("UPDATE t SET x = randomblob(900) WHERE n = ?", 2 + number // 2)

    def offline(self) -> None:
        """What happens while no writer runs."""
        for _ in range(3):
            self.online()


class SteadyCommits(History):
    """Small ones."""


class GrowingAndShrinking(History):
    """Large transactions, some of them rolled back when they have spilled into the WAL; VACUUM."""

    def work(self, number: int) -> None:
        if number % 4 == 1:
            self.app.call("BEGIN")
            self.app.call("INSERT INTO t (x) VALUES (randomblob(60000))")
            self.app.call("ROLLBACK")
        self.do("INSERT INTO t (x) VALUES (randomblob(40000))")
        if number % 3 == 2:
            self.do("DELETE FROM t WHERE n % 3 <> 0")
            self.do("VACUUM")

    def offline(self) -> None:
        self.do("INSERT INTO t (x) VALUES (randomblob(200000))")
        self.do("DELETE FROM t WHERE n % 2")
        self.do("VACUUM")


class Checkpointing(History):
    """The application's own checkpoints of every mode, and a WAL that is used again."""

    modes = itertools.cycle(["PASSIVE", "FULL", "RESTART", "TRUNCATE"])

    def work(self, number: int) -> None:
        super().work(number)
        if number % 3 == 2:
            self.app.call("PRAGMA busy_timeout = 5")
            self.app.call(f"PRAGMA wal_checkpoint({next(self.modes)})")
            self.app.call("PRAGMA busy_timeout = 5000")

    def offline(self) -> None:
        for mode in ("RESTART", "TRUNCATE", "PASSIVE"):
            super().offline()
            self.app.call(f"PRAGMA wal_checkpoint({mode})")
        super().offline()


class ReplacingTheFile(History):
    """Changes of the schema; while no writer runs, the journal mode is switched, and the file is replaced."""

    def work(self, number: int) -> None:
        super().work(number)
        self.do(f"CREATE TABLE u{number} (a, b)")
        self.do(f"INSERT INTO u{number} SELECT n, x FROM t LIMIT 5")
        self.do(f"CREATE INDEX i{number} ON u{number} (a)")
        self.do(f"DROP TABLE u{number}")
        self.do("PRAGMA incremental_vacuum(3)")

    def offline(self) -> None:
        self.app.call("PRAGMA journal_mode = delete")
        self.record()
        super().offline()
        copy = self.app.database.with_name("copy")
        self.app.save(copy)
        super().offline()
        self.app.disconnect()
        shutil.copyfile(copy, copy.with_name("new"))
        copy.with_name("new").rename(self.app.database)
        self.record()
        self.app.call("PRAGMA journal_mode = wal")
        self.record()
        super().offline()


WORKLOADS: dict[str, type[History]] = {
    "steady commits": SteadyCommits,
    "growing and shrinking": GrowingAndShrinking,
    "checkpoints": Checkpointing,
    "replacing the file": ReplacingTheFile,
}


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[WriterProcess]:
    writer = WriterProcess(tmp_path / "app.db", f"file://{tmp_path}/replica")
    yield writer
    writer.kill()


def commit_until_killed(writer: WriterProcess, history: History) -> None:
    deadline = time.monotonic() + DEADLINE_S
    for burst in itertools.count(1):
        for _ in range(BURST):
            if writer.has_ended:
                return
            history.online()
        time.sleep(PAUSE_S if burst % 4 == 0 else 0.01)
        assert time.monotonic() < deadline, "the crash point was not reached"


def until_published(history: History, follower: Follower) -> None:
    expected, deadline = history.app.digest(), time.monotonic() + DEADLINE_S
    while follower.advance() or not follower.digests or follower.digests[-1] != expected:
        assert time.monotonic() < deadline, f"the replica stays at TXID {follower.txid}"
        time.sleep(0.003)


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("point", POINTS)
def test_killed_writer_loses_nothing_and_repeats_nothing(
    tmp_path: Path, writer: WriterProcess, point: str, workload: str
) -> None:
    follower = Follower(tmp_path / "replica")
    history = WORKLOADS[workload](tmp_path)
    with history.app:
        assert writer.start(lease=LeaseMode.HOLD) == ""
        history.online()
        if point in NEEDS_A_FREE_LEASE:
            assert writer.stop() == 0
        else:
            writer.kill()
        history.offline()
        if point is CrashPoint.DIFFERENCE_FOUND:
            history.app.call("PRAGMA wal_checkpoint(TRUNCATE)")

        passes = 1 if point in (AT_A_STOP | AT_A_START | ONCE) else 3
        barrier_frames = BARRIER_FRAMES_OF.get(point, MAX_BARRIER_FRAMES)
        assert writer.start(f"{point}:{passes}", lease=LeaseMode.HOLD, barrier_frames=barrier_frames) == ""
        history.record()  # the journal mode may have been switched
        if point in AT_A_STOP:
            history.online()
        else:
            commit_until_killed(writer, history)
        assert writer.stop() == -signal.SIGKILL

        while follower.advance():  # what is there now was acknowledged, or may have been
            pass
        history.offline()
        assert writer.start(lease=LeaseMode.HOLD) == ""
        history.record()
        until_published(history, follower)
        assert writer.stop() == 0
    follower.check_files()
    follower.check_digests(history.committed)
    left = {path.name for path in (tmp_path / ".app.db-litereplica").iterdir()}
    assert left <= {"lock", "checkpoint.json", "pages.sums", "writer.json", "lineage.json"}, (
        "a spooled file was left behind"
    )
    assert not (tmp_path / "replica" / "lock.json").exists()


@pytest.mark.parametrize("point", CrashPoint)
def test_point_names_a_function_and_its_caller(point: CrashPoint) -> None:
    where = WHERE[point]
    owner, name = owner_of(where)
    assert callable(getattr(owner, name))
    assert not where.caller or where.caller in {
        function.name for module in modules() for function in module.functions()
    }


def test_writer_cannot_be_killed_by_its_environment() -> None:
    assert not [module.where for module in modules() if "LITEREPLICA_CRASH" in module.path.read_text()]
    assert not [
        module.where
        for module in modules()
        if module.where.startswith("writer/") and "SIGKILL" in module.path.read_text()
    ]


def test_there_are_at_least_thirty_points_and_four_workloads() -> None:
    assert len(POINTS) == len(set(POINTS)) >= 30
    assert len(WORKLOADS) >= 4
