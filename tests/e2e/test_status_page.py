"""The status page in a real browser: content, charts, search, paging, dark and light, a phone; no error anywhere.

With SCREENSHOTS=docs/images in the environment, the pictures of the documentation are written there.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from litereplica.web import served
from litereplica.web.lag_history import SAMPLES
from tests.helpers.chromium import CHROMIUM, Page, chromium
from tests.helpers.site_source import SiteSource, record, site_in_thread

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (scripts/setup --dev)")]

MANY = 2000
HOSTILE = "<img src=x onerror=document.title='owned'>.db"
TOKEN = "0123456789abcdef"
ROWS = "document.querySelectorAll('.list tbody tr').length"
FIRST = "document.querySelector('.list button').textContent"
WIDTH_OF_CONTENT = "document.documentElement.scrollWidth"


class Waving(SiteSource):
    """Three of the databases lag, more and less as time goes on."""

    def document(self, wanted: str | None = None) -> dict[str, Any]:
        self.records[3]["lag_ms"] = max(0, round(9000 * math.sin(self.asked / 25) + 4000 * math.sin(self.asked / 6)))
        self.records[8]["lag_ms"] = max(0, self.asked - SAMPLES * 7 // 10) * 10_000
        self.records[5]["lag_ms"] = 45_000 if self.asked > SAMPLES * 0.8 else 0
        return super().document(wanted)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return Path(os.environ.get("SCREENSHOTS", tmp_path))


def search(page: Page, text: str) -> None:
    typed = f"(field) => {{ field.value = {text!r}; field.dispatchEvent(new Event('input')) }}"
    page.value(f"({typed})(document.getElementById('search'))")


def many() -> Waving:
    records = [record(f"/srv/tenants/{number:04}.db") for number in range(MANY)]
    records[5] |= {"unpublished_bytes": 4_300_000}
    records[8] |= {"state": "failed", "error": "s3://backups: Access Denied (ListObjectsV2)"}
    records[9] = record(f"/srv/tenants/{HOSTILE}")
    records[10] = record("/srv/tenants/\udcff.db", state="dormant")
    return Waving(records)


def test_many_databases_are_shown_searched_and_paged(
    page: Page, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "INTERVAL_S", 0.004)
    source = many()
    with site_in_thread(source) as url:
        while source.asked < SAMPLES * 1.2:
            time.sleep(0.01)
        monkeypatch.setattr(served, "INTERVAL_S", 3600.0)
        page.look(width=1200, height=1100)
        page.open(url)
        page.wait_for(f"{ROWS} === 50")
        assert page.value(FIRST) == "/srv/tenants/0008.db", "trouble comes first"
        text = page.value("document.body.innerText")
        for shown in (
            "2,000",
            "Access Denied (ListObjectsV2)",
            "45.0 s, 4.1 MiB",
            "put if absent",
            "$0.000210",
            "48.8 KiB",
        ):
            assert shown in text, shown
        assert page.value("document.title").startswith("(2) ")
        fresh, about = (page.value(f"document.getElementById('{each}').textContent") for each in ("fresh", "about"))
        assert re.fullmatch(r"as of [-0-9]{10} [:0-9]{8}Z", fresh), "all times are UTC"
        assert re.search(r"running since [-0-9]{10} [:0-9]{8}Z", about)
        curve = page.value("document.querySelector('#worst .curve').getAttribute('d')")
        assert curve.count(",") == SAMPLES, "a point for each sample of the hour"
        assert page.value("document.querySelector('#worst .curve').getBoundingClientRect().height") > 50
        assert page.value("document.querySelectorAll('svg.spark .curve').length") == 50
        page.screenshot(pictures / "page-writer.png")

        page.value("document.getElementById('next').click()")
        page.wait_for("document.getElementById('where').textContent.startsWith('51–100 of 2,000')")
        search(page, "onerror")
        page.wait_for(f"{ROWS} === 1")
        assert page.value(FIRST) == f"/srv/tenants/{HOSTILE}"
        search(page, "nothing like this")
        page.wait_for("document.body.innerText.includes('no database matches')")
        search(page, "dormant")
        page.wait_for(f"{ROWS} === 1 && {FIRST}.startsWith('/srv/')")
        page.value("document.querySelector('.list button').click()")
        page.wait_for("document.querySelectorAll('circle.point').length === 40")
        page.value("document.getElementById('close').click()")
        search(page, "tenants/0003")
        page.wait_for(f"{ROWS} === 1 && {FIRST} === '/srv/tenants/0003.db'")
        page.value("document.querySelector('.list button').click()")
        page.wait_for("document.querySelectorAll('circle.point').length === 40")
        page.value("document.querySelectorAll('circle.point')[5].dispatchEvent(new Event('click'))")
        command = page.value("document.getElementById('command').textContent")
        assert "litereplica mount s3://backups/srv/tenants/0003.db MOUNTPOINT --txid 0000000000000008" in command
        page.screenshot(pictures / "page-details.png")
        again = "document.getElementById('close').click(); document.querySelector('.list button').click()"
        page.value(again)  # the event of closing comes after that
        page.wait_for("document.querySelectorAll('circle.point').length === 40")
        page.value("document.getElementById('close').click()")
        search(page, "")
        page.wait_for(f"{ROWS} === 50")

        for width, dark, name in [(390, True, "page-phone.png"), (390, False, ""), (1200, True, ""), (320, False, "")]:
            page.look(width=width, height=900, dark=dark)
            assert page.value(WIDTH_OF_CONTENT) <= width, f"scrolls sideways at {width}"
            background = page.value("getComputedStyle(document.body).backgroundColor")
            assert (background == "rgb(20, 23, 26)") == dark
            if name:
                page.screenshot(pictures / name)
        assert page.value("document.title").endswith("litereplica writer")
    page.wait_for("document.getElementById('fresh').textContent.startsWith('no answer')", within_s=30)
    assert all("net::ERR_CONNECTION" in problem for problem in page.problems), page.problems
    page.problems.clear()


def test_a_password_is_asked_for_and_errors_are_said(page: Page) -> None:
    with site_in_thread(SiteSource([record("/srv/app.db"), record("/srv/other.db")]), token=TOKEN) as url:
        page.look(width=800, height=600)
        page.open(url, headers={"Authorization": f"Bearer {TOKEN}"})
        page.wait_for(f"{ROWS} === 2")
        page.call("Network.setExtraHTTPHeaders", headers={"Authorization": "Bearer of-something-else"})
        page.wait_for("document.body.innerText.includes('a token is needed')")
        assert all("401" in problem for problem in page.problems), page.problems
        page.problems.clear()
        page.open(url.replace("//", f"//anyone:{TOKEN}@"))
        page.wait_for(f"{ROWS} === 2")
        assert not [problem for problem in page.problems if "401" not in problem], page.problems
