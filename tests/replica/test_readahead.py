"""What is fetched beside what is asked for, as tables of reads."""

from __future__ import annotations

import random

import pytest

from litereplica.replica.readahead import (
    FIRST_AHEAD,
    IDLE_S,
    MAX_AHEAD_LIMIT,
    MAX_REQUEST,
    MAX_WINDOW,
    MIN_AHEAD_LIMIT,
    MIN_WINDOW,
    PARALLEL,
    SKIP,
    STREAMS,
    Advice,
    ReadAhead,
)
from litereplica.replica.throughput_model import USUAL_BYTES_PER_S, USUAL_LATENCY_S, ThroughputModel

PAGE = 4096
COMMIT = 1_000_000


def link(latency_s: float, bytes_per_s: float) -> ThroughputModel:
    """A link that has been measured often."""
    measured = ThroughputModel()
    for size in [4096, 300_000, 4_000_000] * 40:
        measured.observe(size, latency_s + size / bytes_per_s)
    return measured


FAR = link(0.02, 100e6)


def reads(
    ranges: list[tuple[int, int]], policy: ReadAhead | None = None, *, over: ThroughputModel = FAR, commit: int = COMMIT
) -> list[Advice]:
    policy = policy or ReadAhead(PAGE)
    return [policy.read(first, last, commit=commit, now=0.0, link=over) for first, last in ranges]


# --- the link ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("latency_s", "bytes_per_s"), [(0.0005, 1e9), (0.01, 100e6), (0.1, 10e6), (0.2, 1e6)])
def test_latency_and_bandwidth_are_told_apart(latency_s: float, bytes_per_s: float) -> None:
    measured = link(latency_s, bytes_per_s)
    assert measured.latency_s == pytest.approx(latency_s, rel=0.3, abs=0.003)
    assert measured.bytes_per_s == pytest.approx(bytes_per_s, rel=0.4)


def test_an_unknown_link_is_a_usual_one_and_a_strange_one_stays_within_bounds() -> None:
    assert ThroughputModel().latency_s == pytest.approx(USUAL_LATENCY_S)
    assert ThroughputModel().bytes_per_s == pytest.approx(USUAL_BYTES_PER_S)
    strange = ThroughputModel()
    for _ in range(50):
        strange.observe(1000, 5.0)
        strange.observe(4_000_000, 0.0)
    assert 0 < strange.latency_s < 10
    assert 1e5 <= strange.bytes_per_s <= 1e10


# --- reads out of the blue --------------------------------------------------------------------


def test_random_reads_fetch_nothing_ahead() -> None:
    chance = random.Random(1)
    pgnos = [chance.randint(1, COMMIT) for _ in range(300)]
    advice = reads([(pgno, pgno) for pgno in pgnos])
    assert sum(len(each.ahead) for each in advice) == 0


@pytest.mark.parametrize(
    ("measured", "least", "most"),
    [
        pytest.param(link(0.0001, 100e6), MIN_WINDOW, MIN_WINDOW, id="near"),
        pytest.param(link(0.005, 60e6), 200_000, 420_000, id="as far as the window is long"),
        pytest.param(link(0.1, 100e6), MAX_WINDOW, MAX_WINDOW, id="far"),
        pytest.param(link(0.1, 0.5e6), MIN_WINDOW, MIN_WINDOW, id="far and thin"),
    ],
)
def test_the_window_is_what_arrives_in_one_round_trip(measured: ThroughputModel, least: int, most: int) -> None:
    (advice,) = reads([(500, 500)], over=measured)
    assert least <= advice.window <= most


# --- streams ----------------------------------------------------------------------------------


def steps(advice: list[Advice]) -> list[int]:
    return [len(each.ahead) * PAGE for each in advice if each.ahead]


def test_a_stream_fetches_ahead_from_its_second_read_and_ever_more() -> None:
    advice = reads([(first, first + 31) for first in range(1, 40_000, 32)])
    assert not advice[0].ahead
    assert advice[1].ahead
    far = [each.ahead.stop - 1 - (32 * n + 32) for n, each in enumerate(advice) if each.ahead]
    assert far[:4] == [FIRST_AHEAD * 2**n // PAGE for n in range(4)]
    assert max(far) == MAX_AHEAD_LIMIT // PAGE
    largest = [each.request for each in advice if each.ahead][-1]
    assert largest == MAX_AHEAD_LIMIT // PARALLEL == MAX_REQUEST


def test_every_page_ahead_is_advised_once_and_in_order() -> None:
    advice = reads([(first, first + 7) for first in range(1, 20_000, 8)])
    pages = [pgno for each in advice for pgno in each.ahead]
    assert pages == sorted(set(pages))
    assert pages == list(range(pages[0], pages[-1] + 1))


def test_a_reader_that_shows_up_only_at_the_first_pages_of_requests_is_still_followed() -> None:
    policy = ReadAhead(PAGE)
    position, seen = 33, reads([(1, 32), (33, 64)], policy)
    for _ in range(30):
        position = seen[-1].ahead.start if seen[-1].ahead else position + 32
        seen += reads([(position, position)], policy)
    assert sum(1 for each in seen if each.ahead) >= 30
    assert max(steps(seen)) > MAX_REQUEST


@pytest.mark.parametrize(
    "ranges",
    [
        pytest.param([(100, 100), (101, 101), (102, 102)], id="page by page"),
        pytest.param([(100, 131), (132, 163)], id="as the kernel reads ahead"),
        pytest.param([(100, 131), (132 + SKIP, 163 + SKIP)], id="with a gap"),
        pytest.param([(100, 131), (116, 163)], id="overlapping"),
        pytest.param([(100, 131), (40_000, 40_000), (132, 163)], id="with another read between"),
    ],
)
def test_reads_that_follow_each_other_are_a_stream(ranges: list[tuple[int, int]]) -> None:
    advice = reads(ranges)
    assert advice[-1].ahead
    assert advice[-1].stream == advice[0].stream


@pytest.mark.parametrize(
    "ranges",
    [
        pytest.param([(100, 100), (100, 100), (100, 100)], id="the same page again"),
        pytest.param([(100, 131), (20, 51)], id="backwards"),
        pytest.param([(100, 131), (9000, 9031)], id="far ahead"),
    ],
)
def test_other_reads_are_not(ranges: list[tuple[int, int]]) -> None:
    assert steps(reads(ranges)) == []


def test_several_streams_at_the_same_time_are_told_apart() -> None:
    starts = [1 + 50_000 * n for n in range(STREAMS)]
    advice = reads([(start + step, start + step + 31) for step in range(0, 320, 32) for start in starts])
    assert len({each.stream for each in advice}) == STREAMS
    assert sum(1 for each in advice if each.ahead) >= 2 * STREAMS


def test_nothing_is_fetched_behind_the_end() -> None:
    advice = reads([(first, first + 31) for first in range(1, 1000, 32)], commit=1000)
    assert max(pgno for each in advice for pgno in each.ahead) == 1000


def test_a_near_store_needs_less_ahead() -> None:
    near = reads([(first, first + 31) for first in range(1, 40_000, 32)], over=link(0.0002, 500e6))
    assert max(each.ahead.stop - 32 * n - 33 for n, each in enumerate(near) if each.ahead) * PAGE <= 2 * MIN_AHEAD_LIMIT


def test_a_stream_that_is_left_alone_or_pushed_out_is_over() -> None:
    policy = ReadAhead(PAGE)
    (first,) = reads([(1, 32)], policy)
    assert policy.read(9000, 9000, commit=COMMIT, now=IDLE_S + 0.1, link=FAR).over == (first.stream,)
    policy = ReadAhead(PAGE)
    advice = reads([(1 + 10_000 * n, 1 + 10_000 * n) for n in range(STREAMS + 1)], policy)
    assert [each.over for each in advice] == [()] * STREAMS + [(advice[0].stream,)]
