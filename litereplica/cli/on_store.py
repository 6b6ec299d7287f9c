"""Runs an async function on a replica: opens and closes the store, and cancels the function on SIGINT and SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from litereplica.cli.logging_setup import log_if_asked
from litereplica.cli.nothing_there import explained
from litereplica.cli.replica_of import ReplicaOf
from litereplica.errors import NoReplica, leaves
from litereplica.ltxstore.store import LTXStore, open_ltx_store

T = TypeVar("T")


def run_on_store(replica: ReplicaOf | str, work: Callable[[LTXStore], Awaitable[T]]) -> T:
    """Run `work` with the store of a replica, which may be given as its URL, and return the result.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM ended it.
        UsageError: the URL is invalid. And the errors of `work`; a `NoReplica` says what is there instead.
    """
    log_if_asked()
    return trio.run(_run, ReplicaOf(replica) if isinstance(replica, str) else replica, work)


async def _run(replica: ReplicaOf, work: Callable[[LTXStore], Awaitable[T]]) -> T:
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:

            async def cancel_on_signal() -> None:
                await anext(signals)
                nursery.cancel_scope.cancel()

            nursery.start_soon(cancel_on_signal)
            store = open_ltx_store(replica.url, credentials=replica.credentials)
            try:
                result = await work(store)
            except (NoReplica, ExceptionGroup) as exc:
                found = next((each for each in leaves(exc) if isinstance(each, NoReplica)), None)
                if found is None:
                    raise
                raise await explained(store, found) from exc
            finally:
                await store.aclose()
            nursery.cancel_scope.cancel()
            return result
    raise KeyboardInterrupt
