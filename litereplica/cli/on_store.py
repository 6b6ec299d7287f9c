"""Runs an async function on a replica: opens and closes the store, and cancels the function on SIGINT and SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.storage.credentials import Credentials

T = TypeVar("T")


def run_on_store(
    replica_url: str, work: Callable[[LTXStore], Awaitable[T]], *, credentials: Credentials | None = None
) -> T:
    """Run `work` with the replica's store, and return its result.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM ended it.
        UsageError: the URL is invalid. And the errors of `work`.
    """
    return trio.run(_run, replica_url, work, credentials)


async def _run(replica_url: str, work: Callable[[LTXStore], Awaitable[T]], credentials: Credentials | None) -> T:
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:

            async def cancel_on_signal() -> None:
                await anext(signals)
                nursery.cancel_scope.cancel()

            nursery.start_soon(cancel_on_signal)
            store = open_ltx_store(replica_url, credentials=credentials)
            try:
                result = await work(store)
            finally:
                await store.aclose()
            nursery.cancel_scope.cancel()
            return result
    raise KeyboardInterrupt
