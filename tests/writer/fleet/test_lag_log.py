"""How the log tells that the store is behind."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from litereplica.writer.fleet.lag_log import FIRST_S, LagLog
from litereplica.writer.fleet.statistics import DatabaseStatistics, State

pytestmark = pytest.mark.slow


def behind(*seconds: float) -> list[DatabaseStatistics]:
    return [
        DatabaseStatistics(Path(f"/{number}.db"), "", State.ACTIVE, behind_s=each, unpublished_bytes=10)
        for number, each in enumerate(seconds)
    ]


def test_nothing_is_said_of_what_is_up_to_date_or_soon_is() -> None:
    told = LagLog()
    assert [told.line(behind(seconds)) for seconds in (0.0, 5.0, FIRST_S - 1, 0.0)] == [None] * 4


def test_it_is_said_soon_and_then_each_time_it_has_doubled() -> None:
    told = LagLog()
    said = [seconds for seconds in range(0, 1000, 5) if told.line(behind(seconds))]
    assert said == [30, 60, 120, 240, 480, 960]


def test_it_is_said_when_all_is_well_again_and_once() -> None:
    told = LagLog()
    assert told.line(behind(31.0, 0.0)) == (logging.WARNING, "the store is 31 s behind /0.db, by 10 bytes of its WAL")
    assert told.line(behind(2.0, 1.0)) is None
    assert told.line(behind(0.0, 1.0)) == (logging.INFO, "the store is up to date again")
    assert told.line(behind(0.0, 0.0)) is None
    assert told.line(behind(30.0, 0.0)) is not None


def test_nothing_is_said_of_a_database_that_was_never_opened_or_is_no_longer_replicated() -> None:
    told = LagLog()
    never = DatabaseStatistics(Path("/x.db"), "", State.FAILED, behind_s=31.0, error="no such file")
    assert told.line([never]) is None
    assert told.line([never.ended(State.GONE)]) is None
    (late,) = behind(31.0)
    for state in (State.GONE, State.STOPPED):
        assert told.line([never, late]) == (logging.WARNING, "the store is 31 s behind /0.db, by 10 bytes of its WAL")
        assert told.line([late.ended(state)]) is None
        assert told.line(behind(0.0)) is None
    published = replace(late, txid=7, unpublished_bytes=0, state=State.FAILED)
    assert told.line([published]) == (logging.WARNING, "the store is 31 s behind /0.db")


def test_of_many_the_worst_is_named() -> None:
    news = LagLog().line(behind(31.0, 50.0, 40.0, 1.0))
    assert news is not None
    assert news[1] == "the store is 50 s behind /1.db, by 10 bytes of its WAL; 2 others lag, too"
