"""The record in `lock.json`: bytes to a lease and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from litereplica.errors import DamagedFile
from litereplica.times import format_time, parse_time_ms

LOCK_KEY = "lock.json"
MAX_LEASE_BYTES = 4096
"""A lease has some 150 bytes. Also the size up to which a `file://` store compares content, not inodes."""
MAX_OWNER_CHARACTERS = 300
"""A host name has at most 253."""
MAX_GENERATION = 2**62
"""Litestream reads a signed 64-bit number; this leaves room for increments."""
LATEST_MS = 253_370_764_800_000
"""The year 9999: a later time cannot be encoded, and is treated like this one."""

_HINT_DAMAGED = "make sure that no other writer publishes there, then delete it"


@dataclass(frozen=True, slots=True)
class Lease:
    """The content of `lock.json`. `expires_ms` is since the epoch; `id` is empty in a lease of another program."""

    generation: int
    expires_ms: int
    owner: str
    id: str = ""

    def encode(self) -> bytes:
        """Return the lease as JSON."""
        fields = {
            "generation": self.generation,
            "expires_at": format_time(self.expires_ms),
            "owner": self.owner,
            "id": self.id,
        }
        return json.dumps(fields).encode()

    @classmethod
    def decode(cls, data: bytes) -> Lease:
        """Decode a lease. Raises `DamagedFile` for anything else."""
        if len(data) > MAX_LEASE_BYTES:
            raise _damaged(f"a lease has at most {MAX_LEASE_BYTES} bytes")
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise _damaged("it is not JSON") from exc
        if not isinstance(fields, dict):
            raise _damaged("it is not a JSON object")
        generation = fields.get("generation")
        if type(generation) is not int or not 0 <= generation < MAX_GENERATION:
            raise _damaged("'generation' is not a number of 0 or more")
        return cls(generation, _expiry_ms(fields), _text(fields, "owner"), _text(fields, "id"))


def _expiry_ms(fields: dict[str, Any]) -> int:
    try:
        expires_ms = parse_time_ms(_text(fields, "expires_at"))
    except ValueError as exc:
        raise _damaged("'expires_at' is not an RFC 3339 time") from exc
    return min(max(expires_ms, 0), LATEST_MS)


def _text(fields: dict[str, Any], name: str) -> str:
    """A short printable text; empty if the field is missing."""
    text = fields.get(name, "")
    if not isinstance(text, str):
        raise _damaged(f"'{name}' is not a text")
    return "".join(character if character.isprintable() else "?" for character in text[:MAX_OWNER_CHARACTERS])


def _damaged(reason: str) -> DamagedFile:
    return DamagedFile(LOCK_KEY, reason, hint=_HINT_DAMAGED)
