"""Requests to publish now: who makes one learns when everything that was committed before is published.

`Replicator` takes the requests that are there when it begins to publish, and answers those when it has published what
was committed at that moment. Requests that arrive meanwhile are for the next time. One that is not answered, because
publishing failed, is put back. The object outlives replicators: it belongs to the database.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from litereplica.types import TXID


class SyncRequest:
    """One request. `txid` is set with `done`."""

    __slots__ = ("done", "txid")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.txid: TXID = 0

    def answer(self, txid: TXID) -> None:
        """Everything committed before the request is published at `txid`."""
        self.txid = txid
        self.done.set()


class SyncRequests:
    """The requests for one database. `wakened` is set when there is one, or when `wake` is called."""

    __slots__ = ("_forward", "_waiting", "_wakened")

    def __init__(self) -> None:
        self._waiting: list[SyncRequest] = []
        self._wakened = trio.Event()
        self._forward: Callable[[], None] = lambda: None

    @property
    def is_wanted(self) -> bool:
        """True if there is a request that nobody has taken."""
        return bool(self._waiting)

    def add(self) -> SyncRequest:
        """Make a request."""
        request = SyncRequest()
        self._waiting.append(request)
        self.wake()
        return request

    def take(self) -> Sequence[SyncRequest]:
        """Take the requests that are there now; `put_back` those that could not be answered."""
        taken, self._waiting = self._waiting, []
        return taken

    def answer(self, taken: Sequence[SyncRequest], txid: TXID) -> None:
        """Answer requests that were taken: everything committed before them is published at `txid`."""
        for request in taken:
            request.answer(txid)

    def put_back(self, requests: Sequence[SyncRequest]) -> None:
        """Leave requests to the next publication."""
        self._waiting = [*requests, *self._waiting]

    def settle(self, request: SyncRequest, txid: TXID) -> None:
        """Answer one request, unless it was taken."""
        if request in self._waiting:
            self._waiting.remove(request)
            request.answer(txid)

    def forward(self, wake: Callable[[], None]) -> SyncRequests:
        """Let `wake` be called as well, to end a wait for something else, instead of the former one; returns itself."""
        self._forward = wake
        return self

    def wake(self) -> None:
        """End the present or the next call of `until_wakened`."""
        self._wakened.set()
        self._forward()

    async def until_wakened(self) -> None:
        """Wait for a request or for `wake`."""
        await self._wakened.wait()
        self._wakened = trio.Event()
