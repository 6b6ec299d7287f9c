"""What a change of a database file's size and times leaves in doubt."""

from __future__ import annotations

import time

import pytest

from litereplica.writer.database import file_watch
from litereplica.writer.database.file_watch import Doubt, FileStatus, FileWatch

S = 1_000_000_000
OLD = FileStatus(8192, 10 * S, 10 * S)
WRITTEN = FileStatus(8192, 20 * S, 20 * S)


@pytest.fixture
def watch() -> FileWatch:
    watch = FileWatch()
    watch.note(OLD, backfilled=7)
    assert watch.is_certain(OLD)
    return watch


def doubt(watch: FileWatch, status: FileStatus, *, backfilled: int = 7) -> Doubt:
    watch.judge(status, backfilled=backfilled)
    return watch.take_doubt()


def test_nothing_is_in_doubt_while_nothing_changes(watch: FileWatch) -> None:
    assert not watch.is_due(OLD)
    assert doubt(watch, OLD) is Doubt.NONE


@pytest.mark.parametrize("backfilled", [8, 3])
def test_a_checkpoint_explains_a_change_and_a_sample_is_enough(watch: FileWatch, backfilled: int) -> None:
    """A lower count is that of a WAL that was restarted since."""
    assert watch.is_due(WRITTEN)
    assert doubt(watch, WRITTEN, backfilled=backfilled) is Doubt.SAMPLE
    assert watch.is_certain(WRITTEN)


def test_metadata_need_no_explanation(watch: FileWatch) -> None:
    changed = FileStatus(OLD.size, OLD.mtime_ns, 20 * S)
    assert doubt(watch, changed) is Doubt.SAMPLE
    assert watch.is_certain(changed)


@pytest.mark.parametrize("backfilled", [7, 0])
def test_a_change_that_stays_unexplained_is_compared_whole(
    watch: FileWatch, backfilled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doubt(watch, WRITTEN, backfilled=backfilled) is Doubt.SAMPLE
    assert watch.is_unexplained
    assert not watch.is_certain(WRITTEN)
    assert not watch.is_due(WRITTEN), "nothing new can be compared yet"
    monkeypatch.setattr(file_watch, "EXPLAIN_WITHIN_S", 0.0)
    assert watch.is_due(WRITTEN)
    assert doubt(watch, WRITTEN, backfilled=backfilled) is Doubt.WHOLE
    assert watch.is_certain(WRITTEN)


def test_a_checkpoint_that_ends_later_explains_its_writes(watch: FileWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doubt(watch, WRITTEN) is Doubt.SAMPLE
    assert doubt(watch, WRITTEN, backfilled=9) is Doubt.NONE
    monkeypatch.setattr(file_watch, "EXPLAIN_WITHIN_S", 0.0)
    assert doubt(watch, WRITTEN, backfilled=9) is Doubt.NONE


def test_a_file_just_written_is_sampled_until_a_write_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, now_ns = FileWatch(), time.time_ns()
    young = FileStatus(8192, now_ns, now_ns)
    watch.note(young, backfilled=7)
    assert not watch.is_certain(young)
    assert doubt(watch, young) is Doubt.SAMPLE
    assert not watch.is_due(young)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns + S)
    assert watch.is_due(young)
    assert doubt(watch, young) is Doubt.SAMPLE
    assert watch.is_certain(young)


def test_what_happened_while_no_read_was_held_needs_a_sample_only(watch: FileWatch) -> None:
    """Another program may have checkpointed all frames and begun the WAL anew."""
    watch.judge(WRITTEN, backfilled=0, was_held=False)
    assert watch.take_doubt() is Doubt.SAMPLE
    assert not watch.is_unexplained
    assert watch.is_certain(WRITTEN)
