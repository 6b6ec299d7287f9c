"""Requests to an S3 store: what kinds there are, how many went over a connection, and what they cost.

Sans-IO: `RequestCounter` is fed the bytes that a client sends on one HTTP/1.1 connection and counts, whatever the
library on the other side; it changes nothing and keeps no body. Bodies are framed by Content-Length, as every S3 client
sends it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

KINDS = ("GET", "HEAD", "LIST", "PUT", "DELETE")

USD_PER_1000 = {"GET": 0.0004, "HEAD": 0.0004, "LIST": 0.005, "PUT": 0.005, "DELETE": 0.0}
"""Amazon S3's list prices for the Standard class, us-east-1. Other stores have the same proportions: a LIST is as
dear as a PUT, and 12.5 GETs."""

_LISTING_PARAMETERS = {"list-type", "prefix", "delimiter", "uploads", "marker", "max-keys"}


@dataclass(frozen=True, slots=True)
class Requests:
    """How many requests of each kind, in one stretch of time."""

    counts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Number of requests of all kinds."""
        return sum(self.counts.values())

    @property
    def usd(self) -> float:
        """What they cost at `USD_PER_1000`."""
        return sum(USD_PER_1000[kind] * count / 1000 for kind, count in self.counts.items())

    def per_hour(self, seconds: float) -> Requests:
        """As many as an hour would have at the rate of these, which took `seconds`."""
        return Requests({kind: round(count * 3600 / seconds) for kind, count in self.counts.items()})

    def since(self, earlier: Requests) -> Requests:
        """Those that came after `earlier` was counted."""
        return Requests({kind: self.counts[kind] - earlier.counts[kind] for kind in KINDS})

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items() if count) or "none"


class RequestCounter:
    """Counts the requests of one connection into a counter that all connections share."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._head = bytearray()
        self._body_left = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes that the client sent, cut anywhere."""
        view = memoryview(data)
        while view:
            if self._body_left:
                skipped = min(self._body_left, len(view))
                self._body_left -= skipped
                view = view[skipped:]
                continue
            searched = max(0, len(self._head) - 3)
            known = len(self._head)
            self._head += view
            end = self._head.find(b"\r\n\r\n", searched)
            if end < 0:
                return
            view = view[end + 4 - known :]
            self._take_head(self._head[:end].decode("latin-1"))
            self._head.clear()

    def _take_head(self, head: str) -> None:
        request, *lines = head.split("\r\n")
        method, target, _ = request.split(" ", 2)
        self._counts[kind_of(method, target)] += 1
        headers = dict(line.lower().split(":", 1) for line in lines)
        self._body_left = int(headers.get("content-length", "0"))


def kind_of(method: str, target: str) -> str:
    """The kind, by price, of a request of S3's interface. Parts of an upload count as PUT, its start and end too."""
    if method == "GET" and _LISTING_PARAMETERS & parse_qs(urlsplit(target).query, keep_blank_values=True).keys():
        return "LIST"
    if method == "POST":
        return "DELETE" if "delete" in parse_qs(urlsplit(target).query, keep_blank_values=True) else "PUT"
    return method
