"""Answers over HTTP that are given up if they are too slow, or too long for what was requested.

http.client limits the time between two bytes, not that of an answer. Here every read of an answer passes a `Pace`.
"""

from __future__ import annotations

import io
import socket
from functools import partial
from http.client import HTTPResponse
from typing import Any

from litereplica.storage import s3_client
from litereplica.storage.pace import Pace

LISTING_PAGE_BYTES = 16 << 20
"""A page of 1,000 keys of 1,024 characters each, all of them escaped, is half as large."""

MESSAGE_BYTES = 1 << 20
"""An error, or the answer to a request that changes something: the largest is that of a deletion of 1,000 keys."""

JOIN_PATIENCE_S = 600.0
"""A store may take minutes to join the parts of an upload, and sends spaces meanwhile."""

_OK = range(200, 300)


class _PacedBytes(io.RawIOBase):
    """The bytes of an answer. `limit` is the largest number of them; None: no limit."""

    def __init__(self, raw: io.RawIOBase, pace: Pace) -> None:
        self._raw = raw
        self._pace = pace
        self.limit: int | None = MESSAGE_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count: int | None = self._raw.readinto(buffer)
        self._pace.received(count or 0)
        if self.limit is not None and self._pace.bytes > self.limit:
            raise ConnectionAbortedError(f"the answer has more than {self.limit} bytes, which were not requested")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class PacedResponse(HTTPResponse):
    """An answer that arrives in time, or fails."""

    def __init__(
        self, sock: socket.socket, *, is_listing: bool, joins_parts: bool, method: str | None = None, **named: Any
    ) -> None:
        super().__init__(sock, method=method, **named)
        self.fp.close()
        self._is_listing = is_listing
        self._is_read = method == "GET"
        pace = Pace(JOIN_PATIENCE_S if joins_parts else s3_client.READ_TIMEOUT_S)
        self._paced = _PacedBytes(sock.makefile("rb", buffering=0), pace)
        self.fp = io.BufferedReader(self._paced)

    def begin(self) -> None:
        """Read status and headers, and set the limit of the body."""
        super().begin()
        if self._is_read and self.status in _OK:
            self._paced.limit = LISTING_PAGE_BYTES if self._is_listing else None


class Paced:
    """Mixin for connections with paced answers. Bodies are sent at once: botocore waits without limit for a `100`."""

    response_class: Any = partial(PacedResponse, is_listing=False, joins_parts=False)

    def connect(self) -> None:
        """Connect. The answer of a proxy is closed: the first releases of Python 3.11 leave it open."""
        answers: list[PacedResponse] = []
        expected = self.response_class  # of the request, if that is what connects

        def answer(*args: Any, **named: Any) -> PacedResponse:
            answers.append(PacedResponse(*args, is_listing=False, joins_parts=False, **named))
            return answers[-1]

        self.response_class = answer
        try:
            super().connect()  # type: ignore[misc] # the connection's
        finally:
            self.response_class = expected
            for each in answers:
                each.close()

    def request(self, method: str, url: str, body: Any = None, headers: Any = None, *args: Any, **named: Any) -> Any:
        """Send a request."""
        if headers is not None:
            headers.pop("Expect", None)  # it is not signed
        return super().request(method, url, body, headers, *args, **named)  # type: ignore[misc] # the connection's

    def putrequest(self, method: str, url: str, *args: Any, **named: Any) -> None:
        """Send the first line of a request; what it asks for limits the answer."""
        joins_parts = method == "POST" and "uploadId=" in url
        self.response_class = partial(PacedResponse, is_listing="list-type=" in url, joins_parts=joins_parts)
        super().putrequest(method, url, *args, **named)  # type: ignore[misc] # the connection's
