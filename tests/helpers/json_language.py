"""The rules of docs/JSON.md for what commands print and daemons answer: of names, and the schema of each document."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry
from referencing.jsonschema import DRAFT202012, Schema

SCHEMAS = Path(__file__).parents[2] / "docs/schemas"
"""`commands/NAME.json` for the output of a command, `http/NAME.json` for the answer to a request for `/NAME`."""

LITESTREAMS = {
    *(f"commands/{name}" for name in ("info", "list", "ltx", "restore", "start", "stop", "sync", "unregister")),
    *(f"commands/{name}" for name in ("compact", "snapshot")),  # they show a file as `ltx` does
    *(f"http/{name}" for name in ("info", "list", "start", "stop", "sync", "txid", "unregister")),
}
"""Documents in Litestream's words."""

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


def require_schema(name: str, document: object) -> None:
    """Fail if a document breaks its schema, or the rules of names where its words are ours.

    `name` is that of the file in docs/schemas, without `.json`.
    """
    error = best_match(_validator(name).iter_errors(document))
    assert error is None, f"{name} at {error.json_path}: {error.message}"
    if name not in LITESTREAMS:
        require_one_language(document)


def require_printed(arguments: Sequence[object], printed: str) -> None:
    """Fail if what a command printed with --json breaks its schema. Nothing printed is right: the command failed."""
    words = [str(word) for word in arguments]
    if {"--json", "-json"}.isdisjoint(words) or not printed:
        return
    name = next(word for word in words if (SCHEMAS / f"commands/{word}.json").is_file())
    require_schema(f"commands/{name}", json.loads(printed))


def require_answered(target: str, answer: object) -> None:
    """Fail if the answer of a daemon to a request for `target` breaks its schema."""
    name = target.partition("?")[0]
    is_error = isinstance(answer, Mapping) and "error" in answer
    require_schema("http/error" if is_error else f"http{name}", answer)


def schemas() -> dict[str, dict[str, Any]]:
    """Return the schemas by name."""
    found = sorted(SCHEMAS.rglob("*.json"))
    return {str(path.relative_to(SCHEMAS).with_suffix("")): json.loads(path.read_text()) for path in found}


@cache
def _validator(name: str) -> Draft202012Validator:
    uris = {each: (SCHEMAS / f"{each}.json").as_uri() for each in schemas()}
    resources = [(uris[each], DRAFT202012.create_resource(schema)) for each, schema in schemas().items()]
    registry: Registry[Schema] = Registry().with_resources(resources)
    return Draft202012Validator({"$ref": uris[name]}, registry=registry)
