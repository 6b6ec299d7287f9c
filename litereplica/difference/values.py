"""Values of SQLite as Python has them, and how they are written: as SQL literals for people, as JSON for programs.

Two values are the same if they are the same bytes of the same type: 1 and 1.0 differ, and so do 0.0 and -0.0. NaN does
not occur, since SQLite keeps NULL in its place.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import TypeAlias

SHOWN_CHARACTERS = 200
"""Of a text, in a literal: a line of a report should stay one that is read."""

SHOWN_BYTES = 40
"""Of a blob, in a literal."""

CODECS = {"UTF-8": "utf-8", "UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}
"""What `PRAGMA encoding` answers, and what Python calls it."""


@dataclass(frozen=True, slots=True)
class RawText:
    """A text that is not well-formed in the database's encoding: its bytes."""

    data: bytes


Value: TypeAlias = int | float | str | bytes | RawText | None


def text_value(data: bytes, encoding: str) -> str | RawText:
    """The text of these bytes; `encoding` as `PRAGMA encoding` names it."""
    try:
        return data.decode(CODECS[encoding])
    except UnicodeDecodeError:
        return RawText(data)


def literal(value: Value) -> str:
    """One line of SQL that makes the value; a large one is cut, with its size behind it."""
    match value:
        case None:
            return "NULL"
        case float():
            return repr(value) if math.isfinite(value) else f"{'-' if value < 0 else ''}9e999"
        case int():
            return str(value)
        case str():
            cut = "" if len(value) <= SHOWN_CHARACTERS else f"… ({len(value):,} characters)"
            return _text_literal(value[:SHOWN_CHARACTERS]) + cut
        case bytes():
            return _blob_literal(value)
        case RawText(data):
            return f"CAST({_blob_literal(data)} AS TEXT)"


def json_value(value: Value) -> object:
    """The JSON value. One that JSON lacks is an object with one key: `blob` (base64), `text` (base64 of a text that
    is not well-formed), `real` (`Infinity` or `-Infinity`)."""
    match value:
        case bytes():
            return {"blob": base64.b64encode(value).decode()}
        case RawText(data):
            return {"text": base64.b64encode(data).decode()}
        case float() if not math.isfinite(value):
            return {"real": "-Infinity" if value < 0 else "Infinity"}
    return value


def printable(text: str) -> str:
    """The text with line breaks and other control characters escaped."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _text_literal(text: str) -> str:
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return "unistr('" + printable(text.replace("\\", "\\\\").replace("'", "''")) + "')"


def _blob_literal(data: bytes) -> str:
    cut = "" if len(data) <= SHOWN_BYTES else f"… ({len(data):,} bytes)"
    return f"X'{data[:SHOWN_BYTES].hex()}'{cut}"


def _escape(char: str) -> str:
    """As SQLite's `unistr` reads it."""
    code = ord(char)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\+{code:06x}"
