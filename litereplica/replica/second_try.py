"""Asks a second time when an answer is late.

A request that the network has lost, or that was sent on a connection that a firewall had forgotten, is noticed by
nothing but time, and the store's client waits for long. A reader has that time only once or twice: so the same request
is made again beside the first one, on a connection of its own, and the answer that comes first counts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

from litereplica.errors import LiteReplicaError
from litereplica.storage.fresh_connection import WANTS_FRESH_CONNECTION

T = TypeVar("T")

PATIENCE_S = 4.0
"""How late an answer may be: much later than the slowest ones of a store that works."""


async def first_answer(ask: Callable[[], Awaitable[T]], *, usual_s: float) -> T:
    """Return what `ask` returns; it is called once more if that takes `PATIENCE_S` longer than `usual_s`.

    Raises what it raises: at once if it was called once, else what the last of both calls raises.
    """
    answers: list[T] = []
    errors: list[LiteReplicaError] = []
    under_way = 0

    async with trio.open_nursery() as nursery:

        async def attempt(*, is_second: bool = False) -> None:
            nonlocal under_way
            under_way += 1
            WANTS_FRESH_CONNECTION.set(is_second)
            try:
                answers.append(await ask())
            except LiteReplicaError as exc:
                errors.append(exc)
            under_way -= 1
            if answers or not under_way:
                nursery.cancel_scope.cancel()

        nursery.start_soon(attempt)
        await trio.sleep(usual_s + PATIENCE_S)
        nursery.start_soon(partial(attempt, is_second=True))
    if answers:
        return answers[0]
    raise errors[-1]
