"""What the page shows of many databases, and the lag that is kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest

from litereplica.cli.writer_site import NEWEST_POINTS, SPREAD_POINTS, some_of
from litereplica.control.http import Refusal
from litereplica.history.points import Selection
from litereplica.web import page
from litereplica.web.lag_history import MAX_LINE, MAX_LINES, SAMPLES, LagHistory, LastLines
from tests.helpers.json_language import require_answered
from tests.helpers.site_source import SiteSource, record

MANY = 2000


def shown(source: SiteSource, **query: str) -> dict[str, Any]:
    return page.view(source.document(), LagHistory(), [], query)


def paths(view: Mapping[str, Any]) -> list[str]:
    return [each["db_path"] for each in view["databases"]]


def test_many_databases_are_searched_sorted_and_paged() -> None:
    records = [record(f"/srv/tenant-{number:04}.db") for number in range(MANY)]
    records[7] |= {"lag_ms": 90_000}
    records[1500] |= {"state": "failed", "error": "Access Denied: <b>bad</b>"}
    records[1999] |= {"state": "gone"}
    source = SiteSource(records)
    first = shown(source)
    require_answered("/databases", first)
    assert paths(first)[:3] == ["/srv/tenant-1500.db", "/srv/tenant-0007.db", "/srv/tenant-0000.db"]
    assert [each["unhealthy"] for each in first["databases"]][:3] == [True, True, False]
    totals = first["totals"]
    assert (totals["databases"], totals["unhealthy"], totals["lag_ms"]) == (MANY - 1, 2, 90_000)
    assert totals["states"] == {"active": MANY - 2, "failed": 1}
    assert (totals["requests"], totals["usd"]) == (49, pytest.approx(0.0002128))
    assert {each["purpose"]: (each["received_bytes"], each["sent_bytes"]) for each in first["requests"]} == {
        "put_if_absent": (0, 50_000),
        "get": (4096, 0),
    }
    assert (first["matches"], first["pages"], len(first["databases"])) == (MANY - 1, 40, page.PAGE_ROWS)
    last = shown(source, sort="name", page="40")
    assert paths(last)[-1] == "/srv/tenant-1998.db"
    assert shown(source, page="999")["page"] == 40
    assert paths(shown(source, search="access denied")) == ["/srv/tenant-1500.db"]
    assert paths(shown(source, search="TENANT-012", sort="name"))[0] == "/srv/tenant-0120.db"
    assert shown(source, search="nothing like that")["matches"] == 0
    assert paths(shown(source, sort="lag"))[0] == "/srv/tenant-0007.db"
    assert paths(shown(source, sort="state"))[0] == "/srv/tenant-0000.db"
    for query in ({"page": "x"}, {"page": "-1"}, {"page": "9" * 99}, {"sort": "__class__"}):
        with pytest.raises(Refusal):
            shown(source, **query)


def test_lag_of_an_hour_is_kept_and_only_that() -> None:
    history = LagHistory()
    for number in range(2 * SAMPLES):
        history.sample([record("/a", lag_ms=number if number < 5 or number >= 2 * SAMPLES - 2 else 0), record("/b")])
    assert history.of("/a") == [[1, 2 * SAMPLES - 2], [0, 2 * SAMPLES - 1]]
    assert history.of("/b") == history.of("/unknown") == []
    assert len(history.worst_ms) == SAMPLES
    assert history.worst_ms[-2:] == [2 * SAMPLES - 2, 2 * SAMPLES - 1]
    for _ in range(SAMPLES):
        history.sample([record("/b")])
    assert history.of("/a") == []


@pytest.mark.logs("line|x")
def test_last_lines_of_the_log_are_kept_and_bounded() -> None:
    last = LastLines()
    log = logging.getLogger("litereplica.test")
    with last.attached():
        for number in range(MAX_LINES + 3):
            log.warning("line %d", number)
        log.error("x" * 9999)
        log.info("not this")
    log.warning("nor this line")
    assert len(last.lines) == MAX_LINES
    assert last.lines[0].text == "line 4"
    assert (last.lines[-1].level, len(last.lines[-1].text)) == ("ERROR", MAX_LINE)


def test_points_of_a_writer_are_the_newest_and_some_of_the_others() -> None:
    few = Selection({txid: [] for txid in range(1, 15)}, 14)
    assert some_of(few) == few
    many = some_of(Selection({txid: [] for txid in range(1, 5001)}, 5000))
    chosen = sorted(many.ending)
    assert chosen[0] == 1
    assert chosen[-NEWEST_POINTS:] == list(range(5001 - NEWEST_POINTS, 5001))
    assert len(chosen) <= NEWEST_POINTS + SPREAD_POINTS
    assert max(later - earlier for earlier, later in pairwise(chosen)) <= 5000 / SPREAD_POINTS


def test_policy_of_the_page_names_its_script_and_style() -> None:
    response = page.document()
    policy = dict(response.headers)["Content-Security-Policy"]
    assert policy.count("'sha256-") == 2
    assert "default-src 'none'" in policy
    text = response.body.decode()
    for outside in (
        "http://",
        "https://",
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        " style=",
    ):
        assert outside not in text.replace("http://www.w3.org/2000/svg", ""), outside
