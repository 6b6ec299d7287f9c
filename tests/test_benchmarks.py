"""The benchmarks' own tools: the proxy that adds latency, the counting of requests, and the report."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import threading
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.latency_proxy import latency_proxy
from benchmarks.report import Measured, Run, document, write
from benchmarks.requests import KINDS, RequestCounter, Requests, kind_of
from benchmarks.results import Comparison, Goal, Result, Series

ROOT = Path(__file__).parents[1]
ROUND_TRIP_MS = 40.0
DEADLINE_S = 30.0

REQUESTS = (
    b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\n\r\n\r\n\r\nGET / \r\n"
    b"GET /b/k?partNumber=1 HTTP/1.1\r\nHost: h\r\nRange: bytes=0-1\r\n\r\n"
    b"GET /b?list-type=2&prefix=p%2F HTTP/1.1\r\nHost: h\r\n\r\n"
    b"POST /b?delete= HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc"
    b"HEAD /b/k HTTP/1.1\r\nHost: h\r\n\r\n"
)


@pytest.fixture
def child_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes find the benchmarks, as scripts/bench lets them."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "scripts")]))


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that sends back what it gets, for one connection, until that is half closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(DEADLINE_S)
                while data := connection.recv(1 << 16):
                    connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_the_proxy_adds_the_round_trip_and_passes_bytes_unchanged(child_modules: None, echo_port: int) -> None:
    body = random.Random(1).randbytes(3 << 20)
    sent = b"PUT /b/k HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with latency_proxy(echo_port, round_trip_ms=ROUND_TRIP_MS) as proxy:
        address = ("127.0.0.1", int(proxy.endpoint.rpartition(":")[2]))
        with socket.create_connection(address, timeout=DEADLINE_S) as connection:
            first_s = exchange(connection, REQUESTS)
            second_s = exchange(connection, REQUESTS)

            def send() -> None:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            sender.join()
        counts = proxy.requests().counts
    assert received == sent
    assert first_s >= 2 * ROUND_TRIP_MS / 1000  # the handshake has its own
    assert second_s >= ROUND_TRIP_MS / 1000
    assert counts == {"GET": 2, "HEAD": 2, "LIST": 2, "PUT": 3, "DELETE": 2}


def exchange(connection: socket.socket, data: bytes) -> float:
    """Seconds from sending to having it back."""
    started = time.perf_counter()
    connection.sendall(data)
    received = b""
    while len(received) < len(data):
        received += connection.recv(1 << 16)
    assert received == data
    return time.perf_counter() - started


def test_the_proxy_closes_a_connection_when_there_is_no_server(child_modules: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with latency_proxy(port, round_trip_ms=1) as proxy:
        address = ("127.0.0.1", int(proxy.endpoint.rpartition(":")[2]))
        with (
            socket.create_connection(address, timeout=DEADLINE_S) as connection,
            contextlib.suppress(ConnectionResetError),
        ):
            assert connection.recv(1) == b""


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, len(REQUESTS)])
def test_requests_are_counted_however_the_stream_is_cut(size: int) -> None:
    counts: Counter[str] = Counter()
    counter = RequestCounter(counts)
    for start in range(0, len(REQUESTS), size):
        counter.feed(REQUESTS[start : start + size])
    assert counts == dict.fromkeys(KINDS, 1)


@pytest.mark.parametrize(
    ("method", "target", "kind"),
    [
        ("GET", "/b/ltx/0/1.ltx", "GET"),
        ("GET", "/b/k?versionId=1", "GET"),
        ("GET", "/b?list-type=2", "LIST"),
        ("GET", "/b/?prefix=&delimiter=%2F", "LIST"),
        ("POST", "/b/k?uploads=", "PUT"),
        ("POST", "/b?delete", "DELETE"),
        ("PUT", "/b/k?partNumber=2&uploadId=x", "PUT"),
        ("DELETE", "/b/k", "DELETE"),
    ],
)
def test_a_request_is_priced_by_its_method_and_query(method: str, target: str, kind: str) -> None:
    assert kind_of(method, target) == kind


def test_a_list_costs_as_much_as_a_put_and_twelve_and_a_half_gets() -> None:
    cost = {kind: Requests(dict.fromkeys(KINDS, 0) | {kind: 1000}).usd for kind in KINDS}
    assert cost == {"GET": 0.0004, "HEAD": 0.0004, "LIST": 0.005, "PUT": 0.005, "DELETE": 0}


RESULT = Result(
    title="Cold scan, s3://",
    unit="s",
    method="How it was done.",
    series=(Series("mount", (0.1, 0.2, 0.4)), Series("peer", (8.0, 6.0))),
    comparisons=(
        Comparison("peer", "mount", Goal(40, at_least=True)),
        Comparison("peer", "mount", Goal(25, at_least=True), percent=99),
        Comparison("mount", None, Goal(0.3)),
    ),
    remarks=("What this run showed.",),
)
RUN = Run(command="scripts/bench all", moment="some day", machine="some machine", versions="some", scale="small")


def test_the_document_tells_medians_ratios_and_whether_goals_are_met() -> None:
    text = document(RUN, [Measured("scripts/bench cold-scan", (RESULT,))])
    assert "$ scripts/bench cold-scan\n" in text
    assert "some day" in text
    assert "some machine" in text
    assert "| mount | 0.2 (0.15–0.3) | 0.4 | 3 |" in text
    assert "| peer ÷ mount | 35 (22.5–55) | ≥ 40 | **no** |" in text
    assert "| peer ÷ mount, 99th percentile | 20 | ≥ 25 | **no** |" in text
    assert "| Cold scan, s3:// | mount, s | 0.2 (0.15–0.3) | ≤ 0.3 | yes |" in text
    assert "What this run showed." in text


def test_plots_are_small_svgs_that_the_document_refers_to_and_replace_those_of_former_runs(tmp_path: Path) -> None:
    other = replace(RESULT, title="Memory", series=(Series("mount's daemon", (90.0,)),), comparisons=())
    path = write(RUN, [Measured("scripts/bench all", (RESULT,))], tmp_path)
    path = write(RUN, [Measured("scripts/bench all", (other, replace(RESULT, title="Lag")))], tmp_path)
    plots = re.findall(r"\]\((benchmarks/.*\.svg)\)", path.read_text())
    assert plots == ["benchmarks/memory.svg", "benchmarks/lag.svg"]
    assert {each.name for each in (tmp_path / "benchmarks").iterdir()} == {"memory.svg", "lag.svg"}
    for each in plots:
        assert ET.parse(tmp_path / each).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert (tmp_path / each).stat().st_size < 20_000
    assert "mount's daemon" in (tmp_path / plots[0]).read_text()
