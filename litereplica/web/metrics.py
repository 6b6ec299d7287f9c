"""Metrics for Prometheus, by `prometheus_client`, from the document of `GET /status`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from litereplica.printable import printable
from litereplica.times import wall_clock_ms
from litereplica.web.families import BOTH, COUNTER, FAMILIES, UNTYPED, WRITER, Family, FileSizes, Scrape

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def exposition(document: Mapping[str, Any]) -> bytes:
    """Return the metrics of a daemon in Prometheus's text format, with those of the process. Blocks."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    sizes = _sizes(document) if document["kind"] == WRITER else {}
    registry.register(_Records(Scrape(document, sizes, wall_clock_ms())))
    return generate_latest(registry)


class _Records(Collector):
    """Yields the families of a document."""

    def __init__(self, scrape: Scrape) -> None:
        self._scrape = scrape

    def collect(self) -> Iterator[Metric]:
        """Yield the families that this kind of daemon has."""
        kind = self._scrape.document["kind"]
        label = cache(_label)  # each family has the same names
        return (_metric(family, self._scrape, label) for family in FAMILIES if family.of in (BOTH, kind))


def _metric(family: Family, scrape: Scrape, label: Callable[[str], str]) -> Metric:
    """Return a family with its samples. Of those whose labels are equal once they can be written, the first counts."""
    metric = Metric(family.name.removesuffix("_total"), family.help, _TYPES.get(family.kind, family.kind))
    seen = set()
    for values, value in family.read(scrape):
        labels = tuple(map(label, values))
        if labels not in seen:
            seen.add(labels)
            metric.add_sample(family.name, dict(zip(family.labels, labels, strict=True)), value)
    return metric


_TYPES = {UNTYPED: "unknown", COUNTER: "counter"}


def _label(text: str) -> str:
    """A value that can be encoded and shown: control characters and bytes that are not UTF-8 are written as escapes."""
    return printable(text).encode("utf-8", "backslashreplace").decode()


def _sizes(document: Mapping[str, Any]) -> dict[str, FileSizes]:
    """Sizes of the database files and their WALs, of those that exist. Blocks."""
    found = {}
    for record in document["databases"]:
        path = record["db_path"]
        if (database := _size(path)) is not None:
            found[path] = FileSizes(database, _size(f"{path}-wal") or 0)
    return found


def _size(path: str) -> int | None:
    try:
        return Path(path).stat().st_size
    except OSError:
        return None
