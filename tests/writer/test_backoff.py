"""How long the writer waits after failures."""

from __future__ import annotations

import random

import pytest

from litereplica.writer.backoff import BUSY_RETRY_MAX_S, RETRY_MAX_S, retry_delay_s

pytestmark = pytest.mark.slow


def test_the_delay_grows_with_the_failures_up_to_its_limit() -> None:
    rng = random.Random(1)
    delays = [max(retry_delay_s(failures, rng) for _ in range(50)) for failures in range(1, 7)]
    assert delays == sorted(delays)
    assert 0.9 * RETRY_MAX_S < max(retry_delay_s(1000, rng) for _ in range(100)) <= RETRY_MAX_S


def test_a_locked_database_is_tried_again_soon_however_often_it_was_locked() -> None:
    rng = random.Random(1)
    assert max(retry_delay_s(100, rng, busy=True) for _ in range(100)) <= BUSY_RETRY_MAX_S
