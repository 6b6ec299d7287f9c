"""What is served on TCP is an attacker's door: Host, token, methods, names, slow clients, many connections."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from http import HTTPStatus
from urllib.parse import quote_from_bytes, urlsplit

import pytest

from litereplica.control import http as server
from litereplica.web import served
from tests.helpers.site_source import SiteSource, record, site_in_thread

TOKEN = "0123456789abcdef"
HOSTILE = "/srv/<img src=x onerror=alert(1)>\"'&.db"
NOT_UTF8 = b"/srv/\xff.db"

Answer = tuple[int, Mapping[str, str], bytes]


def get(url: str, target: str, *, method: str = "GET", **headers: str) -> Answer:
    """Status, headers and body; `_` stands for `-` in the names of headers to send."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=20)
    try:
        connection.request(method, target, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_it_reads_only_and_answers_only_who_may_ask() -> None:
    source = SiteSource([record("/srv/app.db")])
    with site_in_thread(source) as url:
        for target in ("/", "/metrics", "/health", "/status", "/databases", "/points?path=/srv/app.db", "/debug/tasks"):
            status, headers, body = get(url, target)
            assert (status, headers["X-Content-Type-Options"]) == (HTTPStatus.OK, "nosniff"), target
            assert "Access-Control-Allow-Origin" not in headers
            assert body, target
            assert get(url, target, Host="rebound.example")[0] == HTTPStatus.MISDIRECTED_REQUEST, target
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                assert get(url, target, method=method)[0] == HTTPStatus.METHOD_NOT_ALLOWED
        for target in ("/sync", "/stop", "/register", "/wait", "/../etc/passwd", "/page.html", "//"):
            assert get(url, target)[0] == HTTPStatus.NOT_FOUND, target
            assert get(url, target, method="POST")[0] == HTTPStatus.NOT_FOUND, target
        for target in ("/health?max-lag=x", "/databases?page=x", "/databases?sort=x", "/points"):
            assert get(url, target)[0] == HTTPStatus.BAD_REQUEST, target
        assert get(url, "/points?path=/srv/other.db")[0] == HTTPStatus.NOT_FOUND
    with site_in_thread(source, token=TOKEN) as url:
        asked = source.asked
        for target in ("/", "/metrics", "/health", "/points?path=/srv/app.db", "/nothing"):
            assert get(url, target)[0] == HTTPStatus.UNAUTHORIZED, target
            assert get(url, target, Authorization=f"Bearer {TOKEN}x")[0] == HTTPStatus.UNAUTHORIZED
        assert source.asked - asked <= 1, "nothing is made for those who may not ask, but a sample"
        assert get(url, "/health", Authorization=f"Bearer {TOKEN}", Host="primary.internal")[0] == HTTPStatus.OK


def test_names_and_errors_of_others_are_text_in_every_answer(caplog: pytest.LogCaptureFixture) -> None:
    names = [HOSTILE, NOT_UTF8.decode(errors="surrogateescape"), "/srv/new\nline\x1b[31m.db"]
    source = SiteSource([record(name, error="</script><b>", state="failed") for name in names])
    with site_in_thread(source) as url:
        logging.getLogger("litereplica.test").error("%s\x1b[2J", HOSTILE)
        page = get(url, "/")[2]
        assert b"onerror" not in page
        shown = json.loads(get(url, "/databases")[2])
        assert {each["db_path"] for each in shown["databases"]} == set(names)
        assert shown["log"][0]["text"] == f"{HOSTILE}\x1b[2J"
        for target in ("/databases", "/status", "/health", "/metrics", "/debug/log"):
            status, headers, body = get(url, target)
            assert headers["Content-Type"].startswith(("application/json", "text/plain")), "it is no document"
            assert b"\x1b" not in body, target
            assert status == (HTTPStatus.SERVICE_UNAVAILABLE if target == "/health" else HTTPStatus.OK)
        assert b'db="/srv/<img src=x onerror=alert(1)>\\"\'&.db"' in get(url, "/metrics")[2]
        assert b'db="/srv/new\\\\nline\\\\x1b[31m.db"' in get(url, "/metrics")[2]
        path = quote_from_bytes(NOT_UTF8)
        points = json.loads(get(url, f"/points?path={path}")[2])
        assert points["points"][0]["command"].startswith("litereplica mount 's3://backups/srv/")


def test_answers_that_cost_something_are_made_once_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "SHARED_S", 60.0)
    source = SiteSource([record(f"/srv/{number}.db") for number in range(300)])
    with site_in_thread(source) as url:
        for _ in range(10):
            get(url, "/points?path=/srv/7.db")
        assert source.points_asked == 1
        asked = source.asked
        for _ in range(10):
            get(url, "/databases?page=2&search=srv")
        assert source.asked - asked <= 2


def test_slow_and_many_clients_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TRANSFER_LIMIT_S", 1.0)
    source = SiteSource([record(f"/srv/{number}.db") for number in range(3000)])
    with site_in_thread(source) as url, ExitStack() as stack:
        place = (str(urlsplit(url).hostname), urlsplit(url).port)

        def connection(sent: bytes, *, source_address: str = "127.0.0.1") -> socket.socket:
            one = socket.socket()
            stack.callback(one.close)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.settimeout(20)
            one.bind((source_address, 0))
            one.connect(place)
            one.sendall(sent)
            return one

        slow = [connection(b"GET /status HTTP/1.1\r\nHost: ") for _ in range(server.MAX_CONNECTIONS_EACH)]
        more = connection(b"")
        assert more.recv(1) == b"", "one address has a number of connections, and no more"
        slow[0].setblocking(False)
        with pytest.raises(BlockingIOError):  # those that it has are not closed for that
            slow[0].recv(1)
        slow[0].settimeout(20)
        other = connection(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n", source_address="127.0.0.2")
        assert other.recv(64).startswith(b"HTTP/1.1 200"), "others are served meanwhile"
        for each in slow:
            assert each.recv(1) == b"", "who does not ask in time is left"
        deaf = connection(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert get(url, "/health")[0] == HTTPStatus.OK, "who does not listen holds up nobody"
        time.sleep(2 * server.TRANSFER_LIMIT_S)  # which is what it does: nothing
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        received = 0
        with suppress(ConnectionResetError):
            while data := deaf.recv(1 << 20):
                received += len(data)
        assert received < len(get(url, "/status")[2]), "its answer is cut off"


def test_files_that_hang_hold_up_metrics_only(monkeypatch: pytest.MonkeyPatch) -> None:
    released, begun = threading.Event(), []

    def hang(document: object) -> bytes:
        begun.append(document)
        released.wait(20)
        return b""

    monkeypatch.setattr(served, "METRICS_LIMIT_S", 0.3)
    monkeypatch.setattr(served, "exposition", hang)
    with site_in_thread(SiteSource([record("/srv/app.db")])) as url:
        for _ in range(3):
            assert get(url, "/metrics")[0] == HTTPStatus.GATEWAY_TIMEOUT
        assert len(begun) == 1, "one thread hangs, and no more"
        assert get(url, "/health")[0] == HTTPStatus.OK
        released.set()


def test_log_of_requests_that_cannot_be_served_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    with site_in_thread(SiteSource([record("/srv/app.db")])) as url:
        caplog.clear()
        place = (str(urlsplit(url).hostname), urlsplit(url).port)
        for sent in (
            b"\x16\x03\x01" * 30,
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET " + b"/" * 40_000,
            b"\r\n" * 3,
            b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            with socket.create_connection(place, timeout=20) as one:
                one.sendall(sent)
                one.shutdown(socket.SHUT_WR)
                while one.recv(65536):
                    pass
        assert get(url, "/health")[0] == HTTPStatus.OK
        assert not caplog.records, "a stranger fills no log"
