"""Time in these tests passes when nobody has anything to do: threads must not have anything to do, either."""

from __future__ import annotations

import pytest
import trio.testing


@pytest.fixture
def autojump_clock(monkeypatch: pytest.MonkeyPatch) -> trio.testing.MockClock:
    monkeypatch.setattr("litereplica.replica.fetch.DECODE_HERE", 1 << 40)
    return trio.testing.MockClock(autojump_threshold=0)
