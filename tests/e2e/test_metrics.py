"""One state: metrics, page, health, status, JSON, attributes and status database agree with each other and a ledger."""

from __future__ import annotations

import io
import json
import os
import re
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from litereplica.cli import main
from litereplica.errors import ExitCode
from litereplica.testing.mounts import MountedReplica, litereplica_binary
from litereplica.testing.s3_proxy import Misbehaviour, Trouble, s3_proxy
from litereplica.web.served import SHARED_S
from tests.conftest import S3Bucket
from tests.helpers.chromium import CHROMIUM, Page, chromium
from tests.helpers.json_language import require_answered, require_printed
from tests.helpers.promtool import needs_promtool, promtool
from tests.helpers.publisher import Publisher

pytestmark = pytest.mark.slow

DEPLOY = Path(__file__).parents[2] / "deploy"
ADDRESS = ("--metrics-addr", "localhost:0")
DEADLINE_S = 60.0
PICTURE = "page-mount-dark.png"

Metrics = dict[str, dict[tuple[str, ...], float]]


def run(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and output of a command, in this process: it only asks a daemon."""
    output = io.StringIO()
    with redirect_stdout(output):
        code = main.run(list(map(str, arguments)))
    require_printed(arguments, output.getvalue())
    return code, output.getvalue()


def fetch(url: str) -> tuple[int, bytes]:
    """Status and body of a request."""
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def fetch_json(url: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fetch(url)[1])
    require_answered(urlsplit(url).path, found)
    return found


def is_healthy(url: str, max_lag: str = "2s") -> bool:
    return fetch(f"{url}/health?max-lag={max_lag}")[0] == HTTPStatus.OK


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def metrics_of(url: str) -> Metrics:
    """Samples by name, then by the values of their labels."""
    found: Metrics = {}
    for family in text_string_to_metric_families(fetch(f"{url}/metrics")[1].decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def served_at(log: Path) -> str:
    """The URL that a daemon's log names."""
    return str(until(lambda: re.search(r"(http://\S+)/metrics", log.read_text()), f"no address in {log}")[1])


@contextmanager
def writer(directory: Path, database: Path, url: str) -> Iterator[str]:
    """A writer; yields the URL of its page."""
    command = [litereplica_binary(), "replicate", str(database), url, "--sync-interval", "50ms", *ADDRESS]
    with (directory / "writer.log").open("wb") as log:
        process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stderr=log)
        try:
            yield served_at(directory / "writer.log")
        finally:
            process.terminate()
            process.wait()


class Application:
    """Commits numbers, and knows how many: the ledger."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.committed = 0
        self._connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
        self._connection.executescript("PRAGMA journal_mode = wal; CREATE TABLE ledger (n INTEGER PRIMARY KEY, pad);")

    def commit(self) -> None:
        self.committed += 1
        self._connection.execute("INSERT INTO ledger VALUES (?, randomblob(500))", (self.committed,))

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Commit without end during the block."""
        done = threading.Event()

        def run() -> None:
            while not done.wait(0.005):
                self.commit()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def close(self) -> None:
        self._connection.close()


@dataclass
class Seen:
    """What each way says of a database, in the order in which they were asked."""

    txids: dict[str, int] = field(default_factory=dict)
    lags_ms: dict[str, float] = field(default_factory=dict)
    behind: dict[str, int] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    healthy: dict[str, bool] = field(default_factory=dict)

    def note(self, way: str, record: Mapping[str, Any]) -> None:
        """Write down a record."""
        self.txids[way], self.states[way] = int(record["txid"], 16), record["state"]
        self.lags_ms[way] = record["lag_ms"]
        self.behind[way] = record.get("behind_bytes", record.get("unpublished_bytes"))


@dataclass(frozen=True)
class Daemon:
    """A daemon of one database: the URL of its page, the subject of commands, the `db_path`."""

    url: str
    subject: Path
    path: str

    def seen(self) -> Seen:
        """Ask every way of asking once."""
        time.sleep(SHARED_S + 0.1)  # what is shared among those who ask at a time is older than that
        found = Seen()
        (record,) = fetch_json(f"{self.url}/databases")["databases"]
        found.note("page", record)
        found.note("status", json.loads(run("status", self.subject, "--json")[1])["databases"][0])
        (record,) = fetch_json(f"{self.url}/status?path={self.subject}")["databases"]
        found.note("status on TCP", record)
        metrics = metrics_of(self.url)
        of_path = partial(self._value, metrics)
        states = [state for path, state in metrics["litereplica_state"] if path == self.path]
        found.note("metrics", {
            "txid": f"{int(of_path('litereplica_txid')):016x}", "lag_ms": of_path("litereplica_lag_seconds") * 1000,
            "behind_bytes": int(of_path("litereplica_behind_bytes")), "state": states[0],
        })  # fmt: skip
        if "mountpoint" in record:
            self._ask_in_band(found)
        found.healthy["on TCP"] = is_healthy(self.url)
        found.healthy["command"] = run("health", self.subject, "--max-lag", "2s")[0] == ExitCode.OK
        return found

    def _value(self, metrics: Metrics, name: str) -> float:
        return metrics[name][(self.path,)]

    def _ask_in_band(self, found: Seen) -> None:
        names = ("txid", "lag_ms", "behind_bytes", "status")
        told = {name: os.getxattr(self.path, f"user.litereplica.{name}").decode() for name in names}
        numbers = {name: int(told[name]) for name in ("lag_ms", "behind_bytes")}
        found.note("attributes", {**told, **numbers, "state": told["status"]})
        with closing(sqlite3.connect(Path(self.path).with_name(".litereplica.db"))) as connection:
            connection.row_factory = sqlite3.Row
            found.note("status database", dict(connection.execute("SELECT * FROM databases").fetchone()))


def row_in_browser(page: Page, url: str) -> tuple[int, str]:
    """TXID and state in the only row of a page."""
    page.look(width=1200, height=1000, dark=True)
    page.open(url)
    page.wait_for("document.querySelectorAll('.list tbody tr').length === 1")
    txid, state = (page.value(f"document.querySelector('.list tbody tr').cells[{cell}].textContent") for cell in (2, 1))
    return int(txid, 16), state


def require_caught_up(application: Application, daemons: tuple[Daemon, Daemon]) -> int:
    """Publish and wait; then each way says that all is well, and readers find the ledger. Returns the TXID."""
    txid = str(json.loads(run("sync", application.database, "--wait", "--json")[1])["position"])
    primary, mount = daemons
    assert run("wait", mount.subject, "--txid", txid)[0] == ExitCode.OK
    until(lambda: all(is_healthy(each.url, "1ms") for each in daemons), "they are not healthy")
    with closing(sqlite3.connect(mount.path)) as client:
        found = client.execute("SELECT count(*), max(n) FROM ledger").fetchone()
        assert found == (application.committed, application.committed)
    for daemon, state in ((primary, "active"), (mount, "following")):
        seen = daemon.seen()
        assert set(seen.txids.values()) == {int(txid, 16)}, seen
        assert set(seen.lags_ms.values()) == set(seen.behind.values()) == {0}, seen
        assert set(seen.states.values()) == {state}, seen
        assert all(seen.healthy.values()), seen
    return int(txid, 16)


def require_outage_is_told(before: int, daemons: tuple[Daemon, Daemon]) -> None:
    """Each way says so, with one position, lag that grows, and one number of bytes."""
    for daemon in daemons:
        until(lambda url=daemon.url: not is_healthy(url), "the outage is not noticed")  # type: ignore[misc] # mypy
        seen = daemon.seen()
        assert set(seen.txids.values()) == {before}, seen
        lags = list(seen.lags_ms.values())
        assert lags == sorted(lags), seen
        assert lags[0] > 2000, seen
        assert not any(seen.healthy.values()), seen
        assert len(set(seen.behind.values())) == 1, seen
        assert (seen.behind["metrics"] > 0) == (daemon is daemons[0]), "the mount cannot know what is not published"
    shown = fetch_json(f"{daemons[1].url}/databases")
    assert shown["totals"]["unhealthy"] == 1
    until(lambda: "polling fails" in json.dumps(fetch_json(f"{daemons[1].url}/databases")["log"]), "it says not why")


def test_all_ways_agree_during_load_an_outage_and_after_it(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    application = Application(tmp_path / "app.db")
    with closing(application), s3_proxy(s3_bucket.server) as proxy, ExitStack() as stack:
        url = proxy.url(s3_bucket.name)
        application.commit()
        primary_url = stack.enter_context(writer(tmp_path, application.database, url))
        run("sync", application.database, "--wait")
        options = (*ADDRESS, "--poll-interval-max", "50ms")
        mounted = MountedReplica(url, tmp_path / "m", options=options, expected_problems=("poll", "answer"))
        stack.enter_context(mounted)
        mount = Daemon(served_at(mounted.log_file), mounted.mountpoint, str(mounted.path))
        primary = Daemon(primary_url, application.database, str(application.database))
        first = require_caught_up(application, (primary, mount))

        with application.busy():  # each way is at least as new as those that were asked before it
            of_mount, of_primary = mount.seen(), primary.seen()
        for seen in (of_mount, of_primary):
            txids = list(seen.txids.values())
            assert txids == sorted(txids), seen
            assert txids[0] >= first < txids[-1], seen
            assert all(seen.healthy.values()), seen
        assert max(of_mount.txids.values()) <= min(of_primary.txids.values()), "no mount is ahead of its writer"
        before = require_caught_up(application, (primary, mount))

        proxy.plan = lambda exchange: Misbehaviour(Trouble.SILENCE, seconds=1.0)
        application.commit()
        require_outage_is_told(before, (primary, mount))
        if CHROMIUM is not None:
            page = stack.enter_context(chromium(tmp_path))
            assert row_in_browser(page, mount.url) == (before, "failed")

        proxy.plan = lambda exchange: None
        after = require_caught_up(application, (primary, mount))
        assert after > before

        (record,) = fetch_json(f"{primary.url}/status")["databases"]
        assert (record["published_files"], record["error"]) == (after, None)
        time.sleep(SHARED_S + 0.1)
        (record,) = fetch_json(f"{mount.url}/status")["databases"]
        counted = {labels[0]: count for labels, count in metrics_of(mount.url)["litereplica_requests_total"].items()}
        assert all(counted[each["purpose"]] >= each["requests"] > 0 for each in record["requests"])
        for daemon in (primary, mount):
            points = fetch_json(f"{daemon.url}/points?path={daemon.path}")["points"]
            assert (points[-1]["txid"], len(points) > 3) == (f"{after:016x}", True)
        with closing(sqlite3.connect(points[-2]["path"])) as past:
            assert past.execute("SELECT max(n) FROM ledger").fetchone()[0] < application.committed
        if CHROMIUM is not None:
            with closing(sqlite3.connect(mounted.path, isolation_level=None)) as reader:
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM ledger").fetchone()
                time.sleep(1.1)  # readers are looked for once a second
                assert row_in_browser(page, mount.url) == (after, "following")
                page.value("document.querySelector('.list button').click()")
                page.wait_for("document.getElementById('command') !== null")
                assert "Pinned readers" in page.value("document.body.innerText")
                page.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / PICTURE)
            assert not page.problems


def names_in(text: str) -> set[str]:
    """Names of metrics in expressions."""
    return set(re.findall(r"\b(?:litereplica|litestream|process)_[a-z_]+\b", text))


def test_rules_and_dashboard_name_metrics_that_daemons_have(tmp_path: Path) -> None:
    database, store = tmp_path / "app.db", tmp_path / "store"
    Application(database).close()
    with ExitStack() as stack:
        publisher = Publisher(tmp_path / "p", setup="CREATE TABLE t (x)", replica=store / "eu/a.db")
        stack.enter_context(publisher)
        primary = stack.enter_context(writer(tmp_path, database, f"file://{tmp_path}/replica"))
        until(lambda: is_healthy(primary), "the writer does not start")
        single = MountedReplica(publisher.url, tmp_path / "one", options=ADDRESS)
        every = MountedReplica(f"file://{store}", tmp_path / "all", name="", options=("--all", *ADDRESS))
        stack.enter_context(single)
        stack.enter_context(every)
        below = every.mountpoint / "eu/a.db"
        urls = [primary, served_at(single.log_file), served_at(every.log_file)]
        with closing(sqlite3.connect(below)) as client:
            assert client.execute("SELECT count(*) FROM t").fetchone() == (0,)
            found = [metrics_of(url) for url in urls]
            texts = [fetch(f"{url}/metrics")[1].decode() for url in urls]
            points = fetch_json(f"{urls[2]}/points?path={below}")["points"]
            with closing(sqlite3.connect(points[-1]["path"])) as past:
                assert past.execute("SELECT count(*) FROM t").fetchone() == (0,)
        assert found[2]["litereplica_txid"] == {(str(below),): publisher.txid}
        assert found[2]["litereplica_active_databases"] == {(str(every.mountpoint),): 1}
    named = names_in((DEPLOY / "prometheus/alerts.yml").read_text())
    dashboard = json.loads((DEPLOY / "grafana/litereplica.json").read_text())
    named |= names_in(json.dumps([panel["targets"] for panel in dashboard["panels"]] + dashboard["templating"]["list"]))
    assert len(named) > 25
    exist = set(re.findall(r"^# TYPE (\S+)", "\n".join(texts), re.MULTILINE))
    assert not named - exist, "there are no such metrics"


@needs_promtool
@pytest.mark.parametrize(
    "arguments", ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts.test.yml"]
)
def test_rules_are_valid_and_fire_when_they_should(arguments: str) -> None:
    promtool(*arguments.split())


def test_wrong_addresses_and_tokens_are_errors_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    Application(database).close()

    def refused(*arguments: str) -> str:
        assert main.run(list(arguments)) == ExitCode.USAGE
        return capsys.readouterr().err

    for command in (["replicate", str(database), url], ["mount", url, str(tmp_path / "mnt")]):
        message = refused(*command, "--metrics-addr", "nowhere")
        assert "is not an address to listen on: write for instance 9090" in message
        message = refused(*command, "--metrics-addr", "1", "--metrics-token-file", str(database))
        assert "has no token: write 16 to 1024 characters" in message
    file = tmp_path / "litereplica.yml"
    file.write_text(f"addr: x\ndbs: [{{path: {database}, replica: {{path: {tmp_path}/replica}}}}]\n")
    assert "line 1: addr is not an address to listen on" in refused("replicate", "--config", str(file))
