"""Waiting for a condition, with a deadline."""

from __future__ import annotations

from collections.abc import Callable

import trio

POLL_S = 0.0005


async def wait_until(condition: Callable[[], bool], *, within_s: float = 10.0) -> None:
    """Return once `condition` holds; `trio.TooSlowError` when it does not in time."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - the condition lies outside this process's tasks
            await trio.sleep(POLL_S)
