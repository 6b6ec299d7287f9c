"""Escapes untrusted text for terminals and logs: object names, paths and messages of stores.

Control characters (C0, DEL, C1) and characters that change the direction of text are written as escapes. All output and
all log lines go through here, so that no caller has to escape anything.
"""

from __future__ import annotations

import re

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` on one line, with control characters written as escapes such as `\\x1b`."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def printable_json(document: str) -> str:
    """An equal JSON document in which the unsafe characters that `json.dumps` leaves are written as escapes."""
    return _UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", document)
