"""Pages of listings: the XML of ListObjectsV2, read in bounds.

A page is parsed by expat, without a tree, some of it at a time. Documents with a document type (and so with entities)
are refused, and pages of more keys, or of deeper elements, than S3 sends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote_plus
from xml.parsers import expat

from litereplica.storage.base import ObjectInfo
from litereplica.times import milliseconds

PAGE_KEYS = 10_000
"""S3's pages have up to 1,000 keys and prefixes."""

MAX_DEPTH = 8
"""Elements inside one another; S3 has four."""

_PIECE_BYTES = 64 << 10
_NAMES = frozenset(
    ("Key", "Size", "LastModified", "ETag", "Prefix", "EncodingType", "IsTruncated", "NextContinuationToken")
)
"""The elements whose text is kept."""

_SIZE_DIGITS = 18
_ENTRIES = {"Contents": True, "CommonPrefixes": False}
"""The elements of a page that are entries, and whether each is an object."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing: objects and common prefixes; `token` is that of the next page (None: this is the last)."""

    objects: list[ObjectInfo]
    prefixes: list[str]
    token: str | None = None

    def __len__(self) -> int:
        return len(self.objects) + len(self.prefixes)


def parse_page(data: bytes, base: str) -> Page:
    """Return what a page has below `base`, with keys relative to it. Raises `ValueError` if it is no page."""
    builder = _Builder()
    try:
        for start in range(0, len(data), _PIECE_BYTES):
            builder.parser.Parse(data[start : start + _PIECE_BYTES], False)
        builder.parser.Parse(b"", True)
    except expat.ExpatError as exc:
        raise ValueError(f"the listing is not well-formed: {exc}") from exc
    return builder.page(base)


class _Builder:
    """Collects what the parser finds: the text of each element of an entry, and of those of the page."""

    def __init__(self) -> None:
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._add
        self._text = ""
        self._depth = 0
        self._page: dict[str, str] = {}
        self._entry = self._page
        self._root = ""
        self._objects: list[dict[str, str]] = []
        self._prefixes: list[dict[str, str]] = []

    def page(self, base: str) -> Page:
        if self._root != "ListBucketResult":
            raise ValueError(f"the listing is a document of type {self._root[:100]!r}")
        is_encoded = self._page.get("EncodingType") == "url"
        token = self._page.get("NextContinuationToken", "") if self._page.get("IsTruncated") == "true" else None
        if token == "":
            raise ValueError("the listing goes on, and does not say where")
        start = len(base)
        objects = []
        for entry in self._objects:
            key = unquote_plus(entry.get("Key", "")) if is_encoded else entry.get("Key", "")
            if key.startswith(base):
                objects.append(_object(entry, key[start:]))
        prefixes = (each.get("Prefix", "") for each in self._prefixes)
        decoded = (unquote_plus(each) if is_encoded else each for each in prefixes)
        return Page(objects, [each[start:] for each in decoded if each.startswith(base)], token)

    def _refuse(self, *_: object) -> None:
        raise ValueError("the listing has a document type")

    def _start(self, name: str, _: dict[str, str]) -> None:
        self._text = ""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError("the listing has elements too deep inside one another")
        found = _ENTRIES.get(name)
        if found is not None:
            self._entry = {}
            entries = self._objects if found else self._prefixes
            entries.append(self._entry)
            if len(self._objects) + len(self._prefixes) > PAGE_KEYS:
                raise ValueError(f"a page of the listing has more than {PAGE_KEYS} keys")
        elif not self._root:
            self._root = name

    def _add(self, text: str) -> None:
        self._text += text

    def _end(self, name: str) -> None:
        self._depth -= 1
        if name in _ENTRIES:
            self._entry = self._page
        elif name in _NAMES:
            self._entry[name] = self._text


def _object(entry: dict[str, str], key: str) -> ObjectInfo:
    size = entry.get("Size", "")
    if not (size.isascii() and size.isdigit() and len(size) <= _SIZE_DIGITS):
        raise ValueError(f"the listing has the size {size[:100]!r}")
    text = entry.get("LastModified")
    return ObjectInfo(key, int(size), _time_ms(text) if text else 0, entry.get("ETag", ""))


def _time_ms(text: str) -> int:
    modified = datetime.fromisoformat(text)
    if modified.tzinfo is None:
        raise ValueError(f"the listing has the time {text[:100]!r}")
    return milliseconds(modified)


def encoded_parameters(
    prefix: str, *, delimiter: str, start_after: str, token: str | None
) -> Iterator[tuple[str, str]]:
    """The parameters of the request for a page."""
    yield "list-type", "2"
    yield "encoding-type", "url"
    yield "prefix", prefix
    if delimiter:
        yield "delimiter", delimiter
    if token is not None:
        yield "continuation-token", token
    elif start_after:
        yield "start-after", start_after
