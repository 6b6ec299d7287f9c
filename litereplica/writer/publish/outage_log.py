"""Logs when the store does not answer: the storage client may retry for a long time without a log line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from litereplica.errors import StorageError, TransientStorageError

log = logging.getLogger(__name__)

SILENCE_S = 4.0
"""A request that takes longer is logged, so that an operator learns of an outage within 5 s."""
LOOK_INTERVAL_S = 0.5
"""Between checks for such a request."""


class OutageLog:
    """Logs requests that take long, and the first answer after that. `url` is named in the log."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._since_s: float | None = None
        self._answers = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Watch the block, which makes requests to the store.

        An error of the store is an answer; a transient one, or the end of the wait, is none.
        """
        self._since_s = trio.current_time()
        try:
            yield
            self._answers += 1
        except StorageError as exc:
            self._answers += not isinstance(exc, TransientStorageError)
            raise
        finally:
            self._since_s = None

    async def run(self) -> None:
        """Log when an answer takes long, and when one has arrived. Never returns."""
        answers: int | None = None  # before the silence that was logged
        while True:
            await trio.sleep(LOOK_INTERVAL_S)
            since_s = self._since_s
            if answers is not None and self._answers > answers:
                log.info("%s answers again", self._url)
                answers = None
            if since_s is not None and answers is None and trio.current_time() - since_s > SILENCE_S:
                log.warning("%s has not answered for %.0f s; waiting", self._url, SILENCE_S)
                answers = self._answers
