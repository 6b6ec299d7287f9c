"""Values of SQLite in Python, and their text forms: SQL literals for people, JSON for programs.

Two values are equal if they have the same type and bytes: 1 and 1.0 differ, and so do 0.0 and -0.0. NaN does not occur,
since SQLite stores NULL instead.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import TypeAlias

SHOWN_CHARACTERS = 200
"""Characters of a text that are shown in a literal, so that a line stays readable."""

SHOWN_BYTES = 40
"""Bytes of a blob that are shown in a literal."""

CODECS = {"UTF-8": "utf-8", "UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}
"""The Python codec for each value of `PRAGMA encoding`."""


@dataclass(frozen=True, slots=True)
class RawText:
    """The bytes of a text that is not well-formed in the database's encoding."""

    data: bytes


Value: TypeAlias = int | float | str | bytes | RawText | None


def text_value(data: bytes, encoding: str) -> str | RawText:
    """Decode a text; `encoding` is the value of `PRAGMA encoding`."""
    try:
        return data.decode(CODECS[encoding])
    except UnicodeDecodeError:
        return RawText(data)


def literal(value: Value) -> str:
    """The value as an SQL literal on one line; a large one is cut, and its size is added."""
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
    """The value for JSON. Values that JSON lacks become an object with one key.

    `blob` (base64), `text` (base64 of a text that is not well-formed), or `real` (`Infinity` or `-Infinity`).
    """
    match value:
        case bytes():
            return {"blob": base64.b64encode(value).decode()}
        case RawText(data):
            return {"text": base64.b64encode(data).decode()}
        case float() if not math.isfinite(value):
            return {"real": "-Infinity" if value < 0 else "Infinity"}
    return value


def printable(text: str) -> str:
    """The text with line breaks and other unprintable characters escaped."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _text_literal(text: str) -> str:
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return "unistr('" + printable(text.replace("\\", "\\\\").replace("'", "''")) + "')"


def _blob_literal(data: bytes) -> str:
    cut = "" if len(data) <= SHOWN_BYTES else f"… ({len(data):,} bytes)"
    return f"X'{data[:SHOWN_BYTES].hex()}'{cut}"


def _escape(char: str) -> str:
    """An escape that SQLite's `unistr` accepts."""
    code = ord(char)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\+{code:06x}"
