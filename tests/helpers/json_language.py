"""The rules of docs/JSON.md, for any document that a command prints."""

from __future__ import annotations

import re

_TXID = re.compile(r"[0-9a-f]{16}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_TIMES = ("timestamp", "since")
_FORMER = {"time", "seconds", "bytes", "size", "page_size", "staleness_s"}
"""Names that say no unit, or have another name."""


def require_one_language(document: object, where: str = "") -> None:
    """Fail if a name and its value break the rules."""
    if isinstance(document, list):
        for each in document:
            require_one_language(each, where)
    if not isinstance(document, dict):
        return
    for name, value in document.items():
        at = f"{where}.{name}: {value!r}"
        assert name not in _FORMER, at
        assert not re.search(r"_(s|seconds|kb|mb)$|^(monotonic|clock)", name), at
        if name.endswith("txid") or name == "position":
            assert value is None or _TXID.fullmatch(value), at
        elif name in _TIMES or name.endswith("_at"):
            assert value is None or _TIME.fullmatch(value), at
        elif name.endswith(("_ms", "_bytes")):
            assert value is None or isinstance(value, int | list), at
        require_one_language(value, f"{where}.{name}")
