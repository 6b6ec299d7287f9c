"""Names of past states below `.at`: what they mean. Pure.

    txid-000000000000002a                the database at this TXID
    2026-11-22T10:00:00Z                 the newest one before this time: RFC 3339, with any offset and any fraction
    2026-11-22T11:00:00.250+01:00

Nothing else is a name. A date alone, or a time without an offset, would mean another state to readers in another zone.
"""

from __future__ import annotations

from dataclasses import dataclass

from litereplica.errors import LTXError
from litereplica.format.names import format_txid, parse_txid
from litereplica.times import parse_time_ms
from litereplica.types import TXID

TXID_PREFIX = "txid-"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Either a TXID, or the newest state before a time in milliseconds since the epoch."""

    txid: TXID = 0
    before_ms: int = 0


def parse(name: bytes) -> Wanted | None:
    """Return what a name means; None if it is not a name of a past state."""
    try:
        text = name.decode("ascii")
        if text.startswith(TXID_PREFIX):
            txid = parse_txid(text.removeprefix(TXID_PREFIX))
            return Wanted(txid=txid) if txid else None
        return Wanted(before_ms=parse_time_ms(text, round_up=True))
    except (ValueError, LTXError):
        return None


def txid_name(txid: TXID) -> bytes:
    """Return the name of a state by its TXID."""
    return (TXID_PREFIX + format_txid(txid)).encode()
