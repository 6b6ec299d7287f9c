"""The writer against a real application, in any order of what the two can do, each in a process of its own.

The application changes its database in every way that SQLite has, checkpoints, disconnects, is killed; the writer is
started, stopped, and killed, at any moment or at a named point; while it is down its local state is lost, the journal
mode is switched there and back, an older copy takes the database's place, the link that leads to it is repointed, the
clock is set. On demand an older copy also overwrites the database while it is replicated.

Whenever all is published, the replica is the database, byte for byte. Each TXID on the way is a state that the
application had committed, none older than the one before, and no object that was once there has ever changed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from litereplica.errors import SourceChanged
from tests.helpers.app import Application
from tests.helpers.crash_points import CrashPoint
from tests.helpers.follower import Follower
from tests.helpers.writer_process import WriterProcess

STEPS = 50
QUICK_EXAMPLES = 6
EXAMPLES = int(os.environ.get("WRITER_MODEL_EXAMPLES", "400"))
"""Of 50 steps each: 400 take five to six minutes of CPU time. They are divided among tests that workers can share."""

OVERWRITES = "WRITER_MODEL_OVERWRITES" in os.environ
"""Whether the database is overwritten in place meanwhile, too: SQLite itself then sees a mixture now and then."""

DEADLINE_S = 20.0
POLL_S = 0.003
BRIEF_BUSY_TIMEOUT = "PRAGMA busy_timeout = 20"
BUSY_TIMEOUT = "PRAGMA busy_timeout = 5000"


def writer_runs(machine: WriterMachine) -> bool:
    return machine.writer.runs


def writer_is_down(machine: WriterMachine) -> bool:
    return not machine.writer.runs


class WriterMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="writer-model-"))
        self.places = [self.directory / "one", self.directory / "two"]
        for place in self.places:
            place.mkdir()
        self.link = self.directory / "current"
        self.link.symlink_to(self.places[0])
        self.database = self.link / "app.db"
        self.state_was_lost = False
        self.clock_offset_ms = 0
        self.copy = self.directory / "copy"
        self.follower = Follower(self.directory / "replica")
        self.writer = WriterProcess(self.database, f"file://{self.directory}/replica")
        self.committed: list[str] = []  # digest of every state that the application had
        self.tables = 0

    @initialize(
        page_size=st.sampled_from([512, 1024, 4096]), auto_vacuum=st.sampled_from(["none", "full", "incremental"])
    )
    def create(self, page_size: int, auto_vacuum: str) -> None:
        self.page_size = page_size
        setup = f"PRAGMA auto_vacuum = {auto_vacuum};"
        self.app = Application(self.database, page_size=page_size, setup=setup)
        self.reader = Application(self.database)
        self.app.call("PRAGMA cache_size = 10")
        self.do("CREATE TABLE t (n INTEGER PRIMARY KEY, x)")

    def teardown(self) -> None:
        try:
            if hasattr(self, "app"):
                self.reader_ends()
                if not self.writer.runs:
                    self.writer_starts()
                self.everything_is_published()
                self.writer_stops()
                self.follower.check_files()
        finally:
            self.writer.kill()
            if hasattr(self, "app"):
                self.app.kill()
                self.reader.kill()
            shutil.rmtree(self.directory)

    # --- the application -----------------------------------------------------------------------

    @rule(rows=st.integers(1, 30), size=st.sampled_from([0, 50, 700, 5000]))
    def inserts(self, rows: int, size: int) -> None:
        self.do(
            "INSERT INTO t (x) WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < ?) "
            "SELECT randomblob(?) FROM i",
            rows, size,
        )  # fmt: skip

    @rule(rest=st.integers(0, 6), size=st.sampled_from([10, 900]))
    def updates(self, rest: int, size: int) -> None:
        self.do("UPDATE t SET x = randomblob(?) WHERE n % 7 = ?", size, rest)

    @rule(rest=st.integers(0, 2))
    def deletes(self, rest: int) -> None:
        self.do("DELETE FROM t WHERE n % 3 = ?", rest)

    @rule()
    def makes_tables_and_indexes(self) -> None:
        self.tables += 1
        self.do(f"CREATE TABLE u{self.tables} (a, b)")
        self.do(f"INSERT INTO u{self.tables} SELECT n, x FROM t LIMIT 40")
        self.do(f"CREATE INDEX i{self.tables} ON u{self.tables} (a, b)")

    @precondition(lambda self: self.tables > 0)
    @rule()
    def drops_a_table(self) -> None:
        self.do(f"DROP TABLE u{self.tables}")
        self.tables -= 1

    @rule()
    def vacuums(self) -> None:
        self.do("VACUUM")

    @rule(pages=st.sampled_from([1, 7, 1000]))
    def vacuums_incrementally(self, pages: int) -> None:
        self.do(f"PRAGMA incremental_vacuum({pages})")

    @rule(commits=st.integers(10, 40))
    def commits_in_a_row(self, commits: int) -> None:
        for i in range(commits):
            self.do("INSERT OR REPLACE INTO t VALUES (?, randomblob(100))", i)

    @rule(parts=st.integers(1, 4), size=st.sampled_from([2_000, 60_000]), commit=st.booleans(), pause=st.booleans())
    def spills_a_transaction(self, parts: int, size: int, commit: bool, pause: bool) -> None:
        self.app.call("BEGIN IMMEDIATE")
        for _ in range(parts):
            self.app.call("INSERT INTO t (x) VALUES (randomblob(?))", size)
            self.app.call("UPDATE t SET x = randomblob(80) WHERE n % 5 = 0")
            if pause:
                time.sleep(0.015)  # the writer looks at frames of a transaction under way
        self.do("COMMIT" if commit else "ROLLBACK")

    @rule(mode=st.sampled_from(["PASSIVE", "FULL", "RESTART", "TRUNCATE"]))
    def checkpoints(self, mode: str) -> None:
        self.app.call(BRIEF_BUSY_TIMEOUT)
        self.app.call(f"PRAGMA wal_checkpoint({mode})")
        self.app.call(BUSY_TIMEOUT)

    @rule(frames=st.sampled_from([0, 5, 1000]))
    def sets_automatic_checkpoints(self, frames: int) -> None:
        self.app.call(f"PRAGMA wal_autocheckpoint = {frames}")

    @rule()
    def disconnects(self) -> None:
        self.app.disconnect()
        self.app.call("PRAGMA cache_size = 10")

    @rule()
    def is_killed(self) -> None:
        self.app.kill()
        self.app = Application(self.database, page_size=self.page_size)

    @rule()
    def reader_begins(self) -> None:
        self.reader_ends()
        if self.app.call("PRAGMA journal_mode") != [["wal"]]:  # it would keep the application from committing
            return
        self.reader.call("BEGIN")
        self.reader.call("SELECT count(*) FROM t")

    @rule()
    def reader_ends(self) -> None:
        self.reader.disconnect()

    # --- the writer ----------------------------------------------------------------------------

    @precondition(writer_is_down)
    @rule()
    def writer_starts(self) -> None:
        error = self.writer.start(clock_offset_ms=self.clock_offset_ms)
        if self.state_was_lost and "does not continue" in error:  # who published the newest file is not known
            error = self.writer.start(take_over=True)
        assert error == ""
        self.state_was_lost = False
        self.record()  # the journal mode may have been switched

    @precondition(writer_runs)
    @rule()
    def writer_stops(self) -> None:
        assert self.writer.stop() == 0

    @precondition(writer_runs)
    @rule(delay_ms=st.sampled_from([0, 1, 5, 20, 100]))
    def writer_is_killed(self, delay_ms: int) -> None:
        self.updates(3, 10)
        time.sleep(delay_ms / 1000)
        self.writer.kill()

    @precondition(writer_is_down)
    @rule(point=st.sampled_from(CrashPoint), number=st.integers(1, 3), commits=st.integers(1, 30))
    def writer_crashes(self, point: CrashPoint, number: int, commits: int) -> None:
        assert self.writer.start(f"{point}:{number}", take_over=self.state_was_lost) == ""
        self.record()
        self.commits_in_a_row(commits)
        assert self.writer.stop() in (0, -9)

    @precondition(writer_runs)
    @rule()
    def everything_is_published(self) -> None:
        expected, deadline = self.app.digest(), time.monotonic() + DEADLINE_S
        while self.follower.advance() or self.follower.digests[-1] != expected:
            assert time.monotonic() < deadline, f"the replica stays at TXID {self.follower.txid}"
            time.sleep(POLL_S)
        self.follower.check_digests(self.committed)

    # --- while the writer is down ----------------------------------------------------------------

    @precondition(writer_is_down)
    @rule(name=st.sampled_from(["", "pages.sums", "checkpoint.json"]))
    def state_is_lost(self, name: str) -> None:
        if name:
            (self.state / name).unlink(missing_ok=True)
        else:
            shutil.rmtree(self.state, ignore_errors=True)
            self.state_was_lost = True

    @precondition(writer_is_down)
    @rule(back=st.booleans())
    def journal_mode_is_switched(self, back: bool) -> None:
        self.reader_ends()
        assert self.app.call("PRAGMA journal_mode = delete") == [["delete"]]
        self.record()
        self.updates(1, 10)
        if back:
            self.app.call("PRAGMA journal_mode = wal")
            self.updates(2, 10)

    @precondition(writer_runs)
    @rule()
    def journal_mode_cannot_be_switched_meanwhile(self) -> None:
        if self.app.call("PRAGMA journal_mode") == [["wal"]]:
            self.app.call(BRIEF_BUSY_TIMEOUT)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                self.app.call("PRAGMA journal_mode = delete")
            self.app.call(BUSY_TIMEOUT)

    @precondition(writer_is_down)
    @rule(minutes=st.sampled_from([-60, -1, 1, 60]))
    def clock_is_set(self, minutes: int) -> None:
        self.clock_offset_ms += minutes * 60_000

    @precondition(lambda self: writer_is_down(self) and self.copy.exists())
    @rule()
    def link_is_repointed(self) -> None:
        """To an older copy in another directory, which has none of the writer's notes, or those of a former time."""
        self.app.disconnect()
        self.reader.disconnect()
        self.places.reverse()
        for suffix in ("-wal", "-shm", "-journal"):
            (self.places[0] / f"app.db{suffix}").unlink(missing_ok=True)
        shutil.copyfile(self.copy, self.places[0] / "app.db")
        new = self.directory / "new-link"
        new.symlink_to(self.places[0])
        new.rename(self.link)
        self.state_was_lost = True
        self.database_was_changed()

    @precondition(lambda self: OVERWRITES and writer_runs(self))
    @rule(commits=st.integers(0, 3))
    def copy_overwrites_the_database_meanwhile(self, commits: int) -> None:
        """With an empty WAL: SQLite itself lays the frames of an old one over the new pages.

        The writer ends with the next look at the file, if that shows what happened, and starts again. If the
        application comes before that, it takes the size of the database from the index of the old WAL.
        """
        self.reader.disconnect()
        if not self.copy.exists():
            self.copy_is_made()
            self.inserts(3, 700)
        self.everything_is_published()
        if self.app.call("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]:
            return
        self.app.disconnect()
        deadline = time.monotonic() + DEADLINE_S
        while not self.is_settled():
            assert time.monotonic() < deadline, "the writer does not settle"
            time.sleep(POLL_S)
        os.kill(self.writer.pid, signal.SIGSTOP)  # a file that is half written has no right content
        self.database.write_bytes(self.copy.read_bytes())
        self.database_was_changed()
        self.follower.may_have_more_pages = True
        self.commits_in_a_row(commits)
        os.kill(self.writer.pid, signal.SIGCONT)
        expected = self.app.digest()
        while self.follower.advance() or self.follower.digests[-1] != expected:
            assert time.monotonic() < deadline, "the writer does not notice"
            time.sleep(POLL_S)
            if self.writer.has_ended:
                assert self.writer.stop() == SourceChanged.exit_code
                self.writer_starts()

    @rule()
    def copy_is_made(self) -> None:
        self.app.save(self.copy)

    @precondition(lambda self: writer_is_down(self) and self.copy.exists())
    @rule(in_place=st.booleans())
    def copy_replaces_the_database(self, in_place: bool) -> None:
        self.app.disconnect()
        self.reader.disconnect()
        for suffix in ("-wal", "-shm", "-journal"):
            self.database.with_name(self.database.name + suffix).unlink(missing_ok=True)
        if in_place:
            self.database.write_bytes(self.copy.read_bytes())
        else:
            shutil.copyfile(self.copy, self.directory / "new")
            (self.directory / "new").rename(self.database)
        self.database_was_changed()

    # --- helpers -------------------------------------------------------------------------------

    @property
    def state(self) -> Path:
        """The writer's notes, beside the database itself."""
        return self.places[0] / ".app.db-litereplica"

    def is_settled(self) -> bool:
        """Everything is published and in the database file, and noted."""
        try:
            mark = json.loads((self.state / "checkpoint.json").read_bytes())
        except FileNotFoundError:
            return False
        return bool(mark["txid"] == self.follower.txid)

    def database_was_changed(self) -> None:
        """By something else than the application."""
        self.tables = self.app.call("SELECT count(*) FROM sqlite_schema WHERE name LIKE 'u%'")[0][0]
        self.record()

    def do(self, sql: str, *parameters: object) -> None:
        """One transaction of the application."""
        self.app.call(sql, *parameters)
        self.record()

    def record(self) -> None:
        self.committed.append(self.app.digest())


def as_test(examples: int) -> type:
    """The machine as a test. Its runs depend on time, so a failure is shown as it was found, not made smaller."""

    class Machine(WriterMachine):
        pass

    Machine.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    return pytest.mark.filterwarnings("default")(Machine.TestCase)


TestWriterModelBriefly = as_test(QUICK_EXAMPLES)
(
    TestWriterModel1, TestWriterModel2, TestWriterModel3, TestWriterModel4,
    TestWriterModel5, TestWriterModel6, TestWriterModel7, TestWriterModel8,
) = (pytest.mark.slow(as_test(EXAMPLES // 8)) for _ in range(8))  # fmt: skip
