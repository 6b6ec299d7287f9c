"""Many files of level 0: a mount that begins behind them, one that has to apply them, and their listing. Growth by ten.

The databases are made up, since Litestream would take hours to publish so many transactions: pages with a line of text.
"""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.listing_server import listing_server
from benchmarks.results import Comparison, Goal, Result, series
from benchmarks.setting import Setting
from litereplica.format.ltx import Header
from litereplica.format.names import SNAPSHOT_LEVEL, Layout, file_key
from litereplica.format.sqlite import MAGIC
from litereplica.storage.s3_connection import connect
from litereplica.storage.url import parse_url
from litereplica.testing.ltx_files import encode_file

PAGE_SIZE = 4096
PAGES_OPENED, PAGES_APPLIED = 50, 5
"""Of each file: those of a large transaction, whose memory counts, and of a usual one."""
LINEAGE = 7
REPEATS = 3
MEMORY_MB, FILES_PER_S, LISTING_CPU_S = 120, 1000, 2.0
LINEAR = 12.0
"""Ten times the files in at most so many times the time."""


def backlog(setting: Setting) -> tuple[Result, ...]:
    """A mount behind many small files, and one that applies them all: time and memory, in steps of ten."""
    counts = setting.scale.backlog_files
    names = [f"{count:,} files" for count in counts]
    opened = _measured(setting, "open", PAGES_OPENED)
    applied = _measured(setting, "follow", PAGES_APPLIED)
    behind = f"behind a snapshot of {setting.scale.backlog_pages:,} pages; without added latency"
    growth = Comparison(names[-1], names[-2], Goal(LINEAR))
    return (
        Result(
            title="Mount behind a backlog",
            unit="s",
            method=f"From nothing to the page map of the newest state; files of {PAGES_OPENED} pages each {behind}.",
            series=series({name: [each["s"] for each in values] for name, values in opened.items()}),
            comparisons=(growth,),
        ),
        Result(
            title="Memory behind a backlog",
            unit="MB at its peak",
            method="The greatest resident size of the same processes, with all modules of a mount.",
            series=series({name: [each["memory"] / 1e6 for each in values] for name, values in opened.items()}),
            comparisons=(Comparison(names[-1], None, Goal(MEMORY_MB)),),
        ),
        Result(
            title="Catching up",
            unit="files/s",
            method=f"A replica at TXID 1 polls until it is up to date; files of {PAGES_APPLIED} pages each {behind}.",
            series=series(
                {name: [count / each["s"] for each in applied[name]] for name, count in zip(names, counts, strict=True)}
            ),
            comparisons=(Comparison(names[-1], None, Goal(FILES_PER_S, at_least=True)),),
        ),
    )


def listing(setting: Setting) -> tuple[Result, ...]:
    """The CPU time of listing level 0 of an S3 replica, in steps of ten."""
    samples: dict[str, list[float]] = {}
    for keys in setting.scale.listed_keys:
        with listing_server(keys) as url:
            samples[f"{keys:,} keys"] = [_run("list", url)["cpu_s"] for _ in range(setting.scale.repeats)]
    names = list(samples)
    return (
        Result(
            title="Listing",
            unit="s of CPU",
            method="From the request to the records of the files; the client has been made. The store is a program "
            "that answers with prepared pages.",
            series=series(samples),
            comparisons=(
                Comparison(names[-1], None, Goal(LISTING_CPU_S)),
                Comparison(names[-1], names[-2], Goal(LINEAR)),
            ),
        ),
    )


def _measured(setting: Setting, what: str, pages_each: int) -> dict[str, list[dict[str, float]]]:
    """What the reader took, some times, for each number of files."""
    urls = {f"{count:,} files": _publish(setting, count, pages_each) for count in setting.scale.backlog_files}
    return {name: [_run(what, url) for _ in range(min(REPEATS, setting.scale.repeats))] for name, url in urls.items()}


def _run(what: str, url: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.backlog_reader", what, url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _publish(setting: Setting, files: int, pages_each: int) -> str:
    """Put a snapshot and so many files of level 0 after it into SeaweedFS; returns the URL."""
    url = setting.fresh_direct_url()
    place = parse_url(url)
    requests = connect(place)
    base = f"{place.path}/" if place.path else ""

    def put(item: tuple[str, bytes]) -> None:
        key, body = item
        requests.put(base + key, body, {}, with_md5=False)

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(put, _files(setting, files, pages_each)):
            pass
    return url


def _files(setting: Setting, count: int, pages_each: int) -> Iterator[tuple[str, bytes]]:
    pages, chance = setting.scale.backlog_pages, random.Random(1)
    yield file_key(Layout.S3, SNAPSHOT_LEVEL, 1, 1), _file(1, pages, range(1, pages + 1))
    for txid in range(2, count + 2):
        changed = sorted(chance.sample(range(1, pages + 1), pages_each))
        yield file_key(Layout.S3, 0, txid, txid), _file(txid, pages, changed)


def _file(txid: int, commit: int, pgnos: Sequence[int]) -> bytes:
    header = Header(
        page_size=PAGE_SIZE, commit=commit, min_txid=txid, max_txid=txid, timestamp_ms=txid, node_id=LINEAGE
    )
    return encode_file(header, [(pgno, _page(pgno, txid)) for pgno in pgnos])


def _page(pgno: int, txid: int) -> bytes:
    begin = MAGIC + struct.pack(">HBB", PAGE_SIZE, 2, 2) if pgno == 1 else b""
    return (begin + b"page %d at %d" % (pgno, txid)).ljust(PAGE_SIZE, b".")
