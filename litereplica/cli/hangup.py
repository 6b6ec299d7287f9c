"""SIGHUP to a daemon: it looks up its credentials again, and goes on.

What the next client of a store reads anew: the shared credentials and configuration files, the web identity token, the
single sign-on cache, and the certificates of `AWS_CA_BUNDLE`. A log file that was moved away or removed is reopened by
the next line, which is the one that is logged here. The writer also reads its configuration file again.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from litereplica.control import service_manager
from litereplica.storage.s3_connection import look_up_again

log = logging.getLogger(__name__)


def read_anew() -> None:
    """Do what SIGHUP asks for."""
    log.info("received SIGHUP: looking up the credentials again")
    look_up_again()


async def read_anew_on_hangup(work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`, and call `read_anew` at each SIGHUP meanwhile. Raises the errors of `work`."""
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_handle, signals)
            await work()
            nursery.cancel_scope.cancel()


async def _handle(signals: AsyncIterator[int]) -> None:
    async for _ in signals:
        service_manager.reloading()
        read_anew()
        service_manager.ready()
