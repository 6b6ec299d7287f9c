"""A TCP proxy on loopback that makes a server appear some milliseconds away: `python -m benchmarks.latency_proxy`.

Every byte is handed on unchanged, half a round trip after it came, in either direction, and the first bytes of a
connection one round trip later still, for the handshake that a distant server costs. Bandwidth is not limited: it is a
delay line, not a queue of one request. It also counts the S3 requests that pass.

    python -m benchmarks.latency_proxy SERVER_PORT ROUND_TRIP_MS

prints `ready`, then the port it listens on; each line on stdin is answered by a line of JSON, the requests so far by
kind. It ends with its stdin. S3 signatures cover the Host header: clients sign for the proxy's address, which the
server sees as they sent it.
"""

from __future__ import annotations

import asyncio
import json
import math
import selectors
import sys
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast

from benchmarks.requests import KINDS, RequestCounter, Requests
from litereplica.testing.processes import Child, running_module

HOST = "127.0.0.1"
IN_FLIGHT_LIMIT = 64 << 20
"""Bytes under way in one direction of a connection before its sender is held back: 5 ms at 13 GB/s."""


class LatencyProxy:
    """The parent's side of a running proxy."""

    def __init__(self, child: Child, port: int) -> None:
        self._child = child
        self.endpoint = f"http://{HOST}:{port}"

    def requests(self) -> Requests:
        """The requests that came so far."""
        self._child.say("")
        return Requests(json.loads(self._child.hear()))


@contextmanager
def latency_proxy(server_port: int, *, round_trip_ms: float) -> Iterator[LatencyProxy]:
    """A proxy in a process of its own, in front of a server on this machine's loopback."""
    with running_module("benchmarks.latency_proxy", str(server_port), str(round_trip_ms)) as child:
        yield LatencyProxy(child, int(child.hear()))


class _Direction(asyncio.Protocol):
    """Bytes from one socket, on their way to the other."""

    def __init__(self, delay_s: float, counter: RequestCounter | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay_s = delay_s
        self._counter = counter
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._not_before = 0.0
        self._ended = False
        self._source: asyncio.Transport
        self._target: _Direction | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._source = cast(asyncio.Transport, transport)
        if self._target is None:
            self._source.pause_reading()

    def hand_to(self, target: _Direction, *, handshake_s: float) -> None:
        """What comes here leaves there. `target` is the other direction, whose socket this one writes to.

        What has come before waits for that: the first releases of Python 3.11 read although reading is paused.
        """
        self._target = target
        self._not_before = self._loop.time() + handshake_s + self._delay_s
        waiting, self._under_way = self._under_way, deque()
        for _, data in waiting:
            self._enqueue(data)
        self._source.resume_reading()

    def abort(self) -> None:
        """There is no server."""
        self._source.abort()

    def data_received(self, data: bytes) -> None:
        if self._counter is not None:
            self._counter.feed(data)
        self._size += len(data)
        if self._size > IN_FLIGHT_LIMIT:
            self._source.pause_reading()
        self._enqueue(data)

    def eof_received(self) -> bool:
        self._enqueue(b"")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._target is not None:
            self._target._source.close()

    def _enqueue(self, data: bytes) -> None:
        """An empty `data` is the end of the stream."""
        due = max(self._loop.time() + self._delay_s, self._not_before)
        self._under_way.append((due, data))
        if self._timer is None and self._target is not None:
            self._timer = self._loop.call_at(due, self._deliver)

    def _deliver(self) -> None:
        assert self._target is not None
        target = self._target._source
        now = self._loop.time()
        while self._under_way and self._under_way[0][0] <= now:
            _, data = self._under_way.popleft()
            self._size -= len(data)
            if target.is_closing():
                continue
            if data:
                target.write(data)
            else:
                self._end(target)
        self._timer = self._loop.call_at(self._under_way[0][0], self._deliver) if self._under_way else None
        if self._size <= IN_FLIGHT_LIMIT and not self._source.is_closing():
            self._source.resume_reading()

    def _end(self, target: asyncio.Transport) -> None:
        """The end of the stream has arrived: half a connection, or, with the other's, all of it."""
        assert self._target is not None
        self._ended = True
        with suppress(OSError):  # it has gone away entirely
            target.write_eof()
        if self._target._ended:
            target.close()
            self._source.close()


async def _serve(server_port: int, round_trip_s: float) -> None:
    loop = asyncio.get_running_loop()
    counts = Counter(dict.fromkeys(KINDS, 0))
    connecting: set[asyncio.Task[None]] = set()

    async def connect(client: _Direction) -> None:
        try:
            _, server = await loop.create_connection(lambda: _Direction(round_trip_s / 2), HOST, server_port)
        except OSError:
            client.abort()
            return
        server.hand_to(client, handshake_s=0)
        client.hand_to(server, handshake_s=round_trip_s)

    def accepted() -> _Direction:
        client = _Direction(round_trip_s / 2, RequestCounter(counts))
        task = loop.create_task(connect(client))
        connecting.add(task)
        task.add_done_callback(connecting.discard)
        return client

    listener = await loop.create_server(accepted, HOST, 0)
    print(f"ready\n{listener.sockets[0].getsockname()[1]}", flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(counts), flush=True)
    listener.close()


class _PunctualSelector(selectors.EpollSelector):
    """epoll waits for whole milliseconds; this one wakes up before a moment rather than after it, and looks again.

    select would be exact, but it takes no more than 1,000 connections, and Litestream opens one for each file.
    """

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(timeout if timeout is None else math.floor(timeout * 1000) / 1000)


def main() -> None:
    """Serve until the process is ended."""
    server_port, round_trip_ms = int(sys.argv[1]), float(sys.argv[2])
    loop = asyncio.SelectorEventLoop(_PunctualSelector())
    loop.run_until_complete(_serve(server_port, round_trip_ms / 1000))


if __name__ == "__main__":
    main()
