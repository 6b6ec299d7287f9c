"""The heartbeat: requests while all is published, none while a database fails, waits or is behind."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trio
import trio.testing

from litereplica.cli.heartbeat import LOOK_INTERVAL_S, beat, is_healthy, send
from litereplica.config.config import Heartbeat
from litereplica.testing.server_thread import serving
from litereplica.writer.fleet.statistics import DatabaseStatistics, FleetStatistics, State


def fleet(*databases: DatabaseStatistics) -> FleetStatistics:
    return FleetStatistics(databases, {})


def database(state: State, *, behind_s: float = 0.0, error: str | None = None) -> DatabaseStatistics:
    return DatabaseStatistics(Path("/a.db"), "file:///r", state, behind_s=behind_s, error=error)


@pytest.mark.parametrize(
    ("databases", "healthy"),
    [
        ((), False),
        ((database(State.ACTIVE), database(State.DORMANT)), True),
        ((database(State.ACTIVE), database(State.GONE)), True),
        ((database(State.GONE),), False),
        ((database(State.ACTIVE, behind_s=59.0),), True),
        ((database(State.ACTIVE), database(State.ACTIVE, behind_s=60.0)), False),
        ((database(State.ACTIVE, error="no"),), False),
        *(
            ((database(State.ACTIVE), database(state)), False)
            for state in (State.STARTING, State.WAITING, State.FAILED)
        ),
    ],
)
def test_healthy_is_when_each_database_was_published_within_the_interval(
    databases: tuple[DatabaseStatistics, ...], healthy: bool
) -> None:
    assert is_healthy(fleet(*databases), 60.0) == healthy


@contextmanager
def listening(status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """A server that answers with `status`; yields a URL and the paths that were requested."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with serving(HTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"http://127.0.0.1:{port}/ping/secret-token", paths


async def test_requests_are_sent_at_the_interval_and_only_while_all_is_well(
    autojump_clock: trio.testing.MockClock,
) -> None:
    state = [State.STARTING]
    sent: list[float] = []

    async def note(url: str) -> None:
        sent.append(trio.current_time() - start)

    async with trio.open_nursery() as nursery:
        start = trio.current_time()
        nursery.start_soon(beat, Heartbeat("http://x", 60.0), lambda: fleet(database(state[0])), note)
        await trio.sleep(LOOK_INTERVAL_S + 1)
        state[0] = State.ACTIVE
        await trio.sleep(100)
        state[0] = State.FAILED
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert sent == [2 * LOOK_INTERVAL_S, 2 * LOOK_INTERVAL_S + 60]


async def test_request_is_a_get_of_the_url() -> None:
    with listening() as (url, paths):
        await send(url)
        assert paths == ["/ping/secret-token"]


@pytest.mark.parametrize(("status", "told"), [(503, "refused: HTTP status 503"), (0, "could not be sent: ")])
async def test_failure_is_logged_without_the_url(status: int, told: str, caplog: pytest.LogCaptureFixture) -> None:
    with listening(status) as (url, _):
        await send(url if status else "http://127.0.0.1:1/secret-token")
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert told in record.getMessage()
    assert "secret-token" not in caplog.text
