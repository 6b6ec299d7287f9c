"""The listener of a daemon: an address in use, names, health."""

from __future__ import annotations

import json
import logging

import click
import pytest
import trio

from litereplica.cli.daemons import Seconds
from litereplica.control.address import Address, Listen
from litereplica.control.http import Refusal, Request
from litereplica.control.tcp import listen
from litereplica.web import served
from tests.helpers.site_source import SiteSource, record


async def test_an_address_in_use_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(served, "RETRY_S", 0.01)
    caplog.set_level(logging.INFO)
    (taken,) = listen(Address("127.0.0.1", 0))
    address = Listen(Address("127.0.0.1", taken.getsockname()[1]))
    with trio.fail_after(20):
        async with served.serving_tcp(address, SiteSource([record("/srv/app.db")])):
            while "Address already in use" not in caplog.text:  # noqa: ASYNC110 - of a thread
                await trio.sleep(0.01)
            taken.close()
            while "metrics are at" not in caplog.text:  # noqa: ASYNC110 - of a thread
                await trio.sleep(0.01)
            stream = await trio.open_tcp_stream("127.0.0.1", address.address.port)
            async with stream:
                await stream.send_all(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
                assert (await stream.receive_some(64)).startswith(b"HTTP/1.1 200")
    assert caplog.text.count("trying again") == 1, "it is said once"


@pytest.mark.parametrize(
    ("address", "token", "warns"),
    [("", "", True), ("0.0.0.0", "", True), ("", "x" * 16, False), ("127.0.0.1", "", False)],
)
async def test_everybody_is_let_in_with_a_warning_only(
    address: str, token: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with trio.fail_after(20):
        async with served.serving_tcp(Listen(Address(address, 0), token), SiteSource([])):
            while "metrics are at" not in caplog.text:  # noqa: ASYNC110 - of a thread
                await trio.sleep(0.01)
    assert ("give them a token, or write localhost:0" in caplog.text) == warns
    assert token not in caplog.text or not token


def test_health_names_what_is_wrong_and_how_much() -> None:
    source = SiteSource([record("/a"), record("/b", lag_ms=31_000), record("/c", state="gone")])
    assert served.health(source.document(), "1m").status == 200
    sick = served.health(source.document(), None)
    assert (sick.status, json.loads(sick.body)) == (
        503,
        {"status": "unhealthy", "databases": 2, "unhealthy": 1, "reasons": ["/b is 31.0 s behind"]},
    )
    many = SiteSource([record(f"/{number}", state="failed", error="no") for number in range(2000)])
    answer = json.loads(served.health(many.document(), "1h").body)
    assert (answer["unhealthy"], len(answer["reasons"])) == (2000, served.MAX_REASONS)


def test_health_takes_the_durations_that_the_command_takes() -> None:
    document = SiteSource([record("/b", lag_ms=31_000)]).document()
    for max_lag, status in (("31", 200), ("30", 503), ("32s", 200), ("1m", 200), ("500ms", 503)):
        assert served.health(document, max_lag).status == status, max_lag
        Seconds().convert(max_lag, None, None)
    for max_lag in ("soon", "0", "0s", "1.5", "-1", ""):
        with pytest.raises(Refusal, match="max-lag is not a duration above zero"):
            served.health(document, max_lag)
        with pytest.raises(click.UsageError):
            Seconds().convert(max_lag, None, None)


async def test_databases_that_are_not_there_are_not_found() -> None:
    routes = {each.path: each.handle for each in served.Site(SiteSource([record("/srv/app.db")])).routes()}
    for target in ("/status", "/points"):
        found = await routes[target](Request(method="GET", path=target, query={"path": "/srv/app.db"}))
        assert (found.status, b"/srv/app.db" in found.body) == (200, True)
        with pytest.raises(Refusal, match="database not found"):
            await routes[target](Request(method="GET", path=target, query={"path": "/srv/no.db"}))
