"""The status page: its document, and what it asks for, one page of databases with totals."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from litereplica.control.health import MAX_LAG_S, alive, sickness
from litereplica.control.http import Refusal, Response
from litereplica.web.lag_history import INTERVAL_S, LagHistory, Line

PAGE_ROWS = 50
"""Databases of one page."""
SHOWN_LINES = 50
"""Lines of the log, the newest first."""

_PAGE = Path(__file__).with_name("page.html")

Record = Mapping[str, Any]
_Key = Callable[[Record], tuple[Any, ...]]


def document() -> Response:
    """Return the page. Its policy admits its own script and style only, and no frame around it."""
    text = _PAGE.read_text("utf-8")
    script, style = (_digest(text, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = [("Content-Security-Policy", policy), ("Referrer-Policy", "no-referrer"), ("Cache-Control", "no-cache")]
    return Response(content_type="text/html; charset=utf-8", body=text.encode(), headers=headers)


def _digest(text: str, tag: str) -> str:
    match = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    content = match[1].encode() if match is not None else b""
    return f"sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}"


def view(status: Record, history: LagHistory, lines: Sequence[Line], query: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page shows for `search`, `sort` and `page` of a query. Raises `Refusal`."""
    present = alive(status["databases"])
    order = _ORDERS.get(query.get("sort", "trouble"))
    if order is None:
        raise Refusal(HTTPStatus.BAD_REQUEST, "unknown order", details=f"write {', '.join(_ORDERS)}")
    wanted = query.get("search", "").casefold()
    found = sorted((record for record in present if _matches(record, wanted)), key=order)
    pages = max(1, -(-len(found) // PAGE_ROWS))
    page = min(max(1, _number(query.get("page", "1"))), pages)
    return {
        "kind": status["kind"],
        "pid": status["pid"],
        "version": status["version"],
        "started_at": status["started_at"],
        "totals": _totals(status, present),
        "requests": _requests(status, present),
        "sample_ms": round(INTERVAL_S * 1000),
        "worst_lag_ms": history.worst_ms,
        "log": [line.record() for line in reversed(list(lines)[-SHOWN_LINES:])],
        "search": query.get("search", ""),
        "matches": len(found),
        "page": page,
        "pages": pages,
        "page_rows": PAGE_ROWS,
        "databases": [
            {**record, "unhealthy": bool(_sickness(record)), "lag_samples": history.of(record["db_path"])}
            for record in found[(page - 1) * PAGE_ROWS : page * PAGE_ROWS]
        ],
    }


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII):
        raise Refusal(HTTPStatus.BAD_REQUEST, "page is not a number")
    return int(text)


def _matches(record: Record, wanted: str) -> bool:
    fields = (record["db_path"], record.get("url"), record["state"], record.get("error"))
    return not wanted or any(wanted in field.casefold() for field in fields if field)


def _sickness(record: Record) -> str:
    return sickness(record, MAX_LAG_S)


_ORDERS: Mapping[str, _Key] = {
    "trouble": lambda record: (not _sickness(record), not record["error"], -record.get("lag_ms", 0), record["db_path"]),
    "name": lambda record: (record["db_path"],),
    "lag": lambda record: (-record.get("lag_ms", 0), record["db_path"]),
    "state": lambda record: (record["state"], record["db_path"]),
}


def _totals(status: Record, present: Sequence[Record]) -> dict[str, Any]:
    costs = _requests(status, present)
    prices = [each["usd"] for each in costs if each["usd"] is not None]
    return {
        "databases": len(present),
        "states": dict(sorted(Counter(record["state"] for record in present).items())),
        "unhealthy": sum(bool(_sickness(record)) for record in present),
        "lag_ms": max((record.get("lag_ms", 0) for record in present), default=0),
        "readers": sum(len(record.get("readers", ())) for record in present),
        "requests": sum(each["requests"] for each in costs),
        "usd": sum(prices) if prices else None,
    }


def _requests(status: Record, present: Sequence[Record]) -> list[dict[str, Any]]:
    """The requests of all databases by purpose, of a writer by operation, with `usd` as None if nothing has a price."""
    found: dict[str, dict[str, Any]] = {}

    def add(purpose: str, each: Record, usd: float | None) -> None:
        nothing = {"purpose": purpose, "requests": 0, "errors": 0, "received_bytes": 0, "sent_bytes": 0, "usd": None}
        sums = found.setdefault(purpose, nothing)
        for key in ("requests", "errors", "received_bytes", "sent_bytes"):
            sums[key] += each.get(key, 0)  # mounts send none
        if usd is not None:
            sums["usd"] = (sums["usd"] or 0) + usd

    for replica in status.get("replicas", ()):
        for each in replica["requests"]:
            add(each["operation"], each, each["usd"])
    for record in present:
        for each in record.get("requests", ()):
            add(each["purpose"], each, each["usd"])
    return sorted(found.values(), key=lambda each: -each["requests"])
