"""A daemon of any number of databases, for what is served on TCP: only its records."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import trio

from litereplica import __version__
from litereplica.control.address import Address, Listen
from litereplica.control.tcp import listen
from litereplica.times import format_time, wall_clock_ms
from litereplica.web import served

DEADLINE_S = 20.0
TIME = "2026-11-29T10:00:00.000Z"


def record(path: str, **changes: Any) -> dict[str, Any]:
    """The record of a database of a writer."""
    return {
        "db_path": path, "url": f"s3://backups{path}", "state": "active", "txid": "000000000000002a",
        "published_at": TIME, "lag_ms": 0, "unpublished_bytes": 0, "wal_frames": 3, "published_files": 42,
        "published_pages": 99, "published_bytes": 50_000, "checkpoints": 1, "syncs": 100, "sync_errors": 2,
        "sync_ms": 1500, "error": None, "lease": {"owner": "primary:1", "generation": 7, "expires_at": TIME},
        **changes,
    }  # fmt: skip


class SiteSource:
    """The state of a writer, as `litereplica.web` asks for it. `asked` counts the documents and points made."""

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self.records = list(records)
        self.asked = self.points_asked = 0

    def document(self, wanted: str | None = None) -> dict[str, Any]:
        self.asked += 1
        requests = [
            {"operation": "put_if_absent", "requests": 42, "errors": 1, "error_codes": {"TransientStorageError": 1},
             "received_bytes": 0, "sent_bytes": 50_000, "usd": 0.00021},
            {"operation": "get", "requests": 7, "errors": 0, "error_codes": {}, "received_bytes": 4096,
             "sent_bytes": 0, "usd": 0.0000028},
        ]  # fmt: skip
        return {
            "kind": "writer", "pid": 1, "version": __version__, "started_at": TIME, "log_file": None, "config": None,
            "databases": [each for each in self.records if wanted in (None, each["db_path"])],
            "replicas": [{"url": "s3://backups", "requests": requests, "usd": 0.0002128, "is_priced": True}],
        }  # fmt: skip

    async def points(self, path: str) -> Sequence[Mapping[str, Any]]:
        self.points_asked += 1
        now = wall_clock_ms()
        return [
            {"txid": f"{txid:016x}", "timestamp": format_time(now - (42 - txid) ** 2 * 1000)} for txid in range(3, 43)
        ]


def _await_listener(port: int, started: Sequence[object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            continue
        assert started
        return


@contextmanager
def site_in_thread(source: SiteSource, *, token: str = "") -> Iterator[str]:
    """Serve on a free port of loopback in a thread; yield the URL."""
    (first, *others) = listen(Address("127.0.0.1", 0))
    port = first.getsockname()[1]
    for each in (first, *others):
        each.close()
    stop: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def serve() -> None:
        with trio.CancelScope() as scope:
            async with served.serving_tcp(Listen(Address("127.0.0.1", port), token), source):
                stop.append((trio.lowlevel.current_trio_token(), scope))
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        _await_listener(port, stop)
        yield f"http://127.0.0.1:{port}/"
    finally:
        token_of_loop, scope = stop[0]
        token_of_loop.run_sync_soon(scope.cancel)
        thread.join()
