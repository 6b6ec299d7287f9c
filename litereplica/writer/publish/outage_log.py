"""Tells when the store does not answer: a retry layer below us may try for long without a word."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import trio

log = logging.getLogger(__name__)

SILENCE_S = 4.0
"""A request that takes longer is told of: an operator learns of an outage within 5 s."""
LOOK_INTERVAL_S = 0.5


class OutageLog:
    """Knows since when the store has been waited for. `url` is for the log."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._since_s: float | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for the store."""
        self._since_s = trio.current_time()
        try:
            yield
        finally:
            self._since_s = None

    async def run(self) -> None:
        """Log when an answer takes long, and when it has come. For ever."""
        told: float | None = None
        while True:
            await trio.sleep(LOOK_INTERVAL_S)
            since_s = self._since_s
            if told is not None and since_s != told:
                log.info("%s answers again", self._url)
                told = None
            if since_s is not None and told is None and trio.current_time() - since_s > SILENCE_S:
                log.warning("%s has not answered for %.0f s; waiting", self._url, SILENCE_S)
                told = since_s
