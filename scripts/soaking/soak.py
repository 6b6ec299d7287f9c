"""A run of the soak test: starts everything, lets it run, ends it in order, and collects what there is to judge."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litereplica.testing.mounts import MountedReplica, MountError, litereplica_binary
from litereplica.testing.processes import Child, running_module
from litereplica.testing.s3_proxy import S3Proxy, s3_proxy
from litereplica.testing.seaweed import SeaweedServer
from soaking.application import create
from soaking.chaos import Chaos, Window
from soaking.reader import Seen
from soaking.state import State, read_ledger, read_state
from soaking.subjects import Client, Mount, Requests, Writer
from soaking.watch import Curve, Watch

READERS = ("held", "held", "fresh", "fresh", "mmap", "cli", "holder", "past")
"""On each of the two mounts."""
CATCH_UP_S = 180.0

CONFIGURATION = """\
levels: [{{interval: 5s}}, {{interval: 30s}}, {{interval: 2m}}]
snapshot: {{interval: 3m, retention: 6m}}
l0-retention: 3m
dbs:
  - path: {database}
    replica:
      url: {url}
      sync-interval: 100ms
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run."""

    minutes: float
    seed: int
    rate: float
    directory: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was seen.

    `log_lines` are those of each daemon, in all of its lives; `warnings` counts the serious ones. `faults` are what
    went wrong besides the readers' failures and wrong reads.
    """

    plan: Plan
    began: float
    ended: float
    ledger: dict[int, tuple[float, State]]
    application: dict[str, Any]
    readers: list[Seen]
    windows: list[Window]
    troubles: Counter[str]
    drops: int
    curves: list[Curve]
    requests: dict[str, Requests]
    warnings: Counter[str]
    log_lines: dict[str, list[str]]
    faults: list[str]


def run(plan: Plan, say: Callable[[str], None]) -> Run:
    """Run for the planned time. Raises what a daemon or the machine does not survive."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-", dir=plan.directory)))
        server = stack.enter_context(SeaweedServer(directory / "seaweed"))
        proxy = stack.enter_context(s3_proxy(server))
        return _Soak(plan, directory, server, proxy, say).run()


class _Soak:
    def __init__(
        self, plan: Plan, directory: Path, server: SeaweedServer, proxy: S3Proxy, say: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._directory = directory
        self._server = server
        self._proxy = proxy
        self._say = say
        self._database = directory / "primary" / "app.db"
        self._bucket = server.create_bucket()
        self._url = proxy.url(self._bucket)
        self._chaos = Chaos(proxy, plan.seed)
        self._faults: list[str] = []

    def run(self) -> Run:
        self._database.parent.mkdir()
        create(self._database)
        writer = self._started_writer()
        with contextlib.ExitStack() as stack:
            stack.callback(writer.end)
            mounts = {
                "kept mount": stack.enter_context(self._mounted("kept", [])),
                "killed mount": stack.enter_context(self._mounted("killed", ["--cache-size", "4MiB"])),
            }
            began = time.time()
            watch = self._watch(writer, mounts)
            readers = [stack.enter_context(reader) for reader in self._readers(mounts)]
            application = stack.enter_context(self._application())
            watch.start()
            kills = {"writer": writer.kill_and_restart, "killed mount": mounts["killed mount"].kill_and_restart}
            self._chaos.start(kills, [mount.mounted.path for mount in mounts.values()])
            self._wait(began, readers)
            self._chaos.stop()
            if writer.has_ended():
                self._faults.append("the writer had ended by itself")
            application.process.stdin.close()  # type: ignore[union-attr]
            counts = json.loads(application.hear())
            ledger = {state[0]: (at, state) for at, state in read_ledger(self._directory / "ledger")}
            self._catch_up(mounts, max(ledger))
            seen = [reader.end() for reader in readers]
            for mount in mounts.values():
                mount.note_requests()
            curves = watch.stop()
            warnings, log_lines = self._warnings(mounts)
        self._check_replica(writer, ledger[max(ledger)][1])
        return Run(
            plan=self._plan,
            began=began,
            ended=time.time(),
            ledger=ledger,
            application=counts,
            readers=seen,
            windows=sorted(self._chaos.windows, key=lambda window: window.begin),
            troubles=self._proxy.troubles,
            drops=self._chaos.drops,
            curves=curves,
            requests={name: mount.requests for name, mount in mounts.items()},
            warnings=warnings,
            log_lines=log_lines,
            faults=self._faults,
        )

    def _started_writer(self) -> Writer:
        configuration = self._directory / "litereplica.yml"
        configuration.write_text(CONFIGURATION.format(database=self._database, url=self._url))
        writer = Writer(configuration, self._server.environment(), self._directory / "writer.log")
        writer.start()
        return writer

    @contextlib.contextmanager
    def _mounted(self, name: str, options: list[str]) -> Iterator[Mount]:
        mounted = MountedReplica(
            self._url,
            self._directory / name,
            poll_interval="200ms",
            options=["--wait", "50s", *options],
            expected_problems=["."],
            environment=self._server.environment(),
        )
        is_over = False
        try:
            with mounted:
                mount = Mount(mounted)
                mount.begun()
                yield mount
                is_over = True
        except MountError as exc:
            if not is_over:
                raise
            self._faults.append(f"{name}: {exc}")

    def _application(self) -> contextlib.AbstractContextManager[Child]:
        arguments = (str(self._database), str(self._directory / "ledger"), str(self._plan.rate), str(self._plan.seed))
        return running_module("soaking.application", *arguments)

    def _readers(self, mounts: dict[str, Mount]) -> list[Client]:
        return [
            Client(kind, name, mount.mounted.path, self._directory / f"{name} {number}.notes", self._plan.seed + number)
            for name, mount in mounts.items()
            for number, kind in enumerate(READERS)
        ]

    def _watch(self, writer: Writer, mounts: dict[str, Mount]) -> Watch:
        def count_objects() -> tuple[int, int]:
            with self._server.client() as client:
                pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket)
                sizes = [item["Size"] for page in pages for item in page.get("Contents", [])]
                return len(sizes), sum(sizes)

        pids: dict[str, Callable[[], int]] = {"writer": lambda: writer.pid}
        for name, mount in mounts.items():
            pids[name] = lambda mount=mount: mount.mounted.pid  # type: ignore[misc]
        return Watch(pids, count_objects)

    def _wait(self, began: float, readers: list[Client]) -> None:
        end = began + self._plan.minutes * 60
        said = 0.0
        while time.time() < end:
            time.sleep(min(1.0, max(0.0, end - time.time())))
            for reader in readers:
                reader.restart_if_killed()
            if time.time() - said > 60:
                said = time.time()
                self._say(f"{(said - began) / 60:.0f} of {self._plan.minutes:g} minutes")

    def _catch_up(self, mounts: dict[str, Mount], counter: int) -> None:
        """Each mount shows the last transaction."""
        for name, mount in mounts.items():
            deadline = time.monotonic() + CATCH_UP_S
            while (shown := self._counter(mount.mounted.path)) != counter:
                if time.monotonic() > deadline:
                    self._faults.append(f"the {name} shows {shown}, and not {counter}, {CATCH_UP_S:g} s after the end")
                    break
                time.sleep(0.2)

    def _counter(self, path: Path) -> int | str:
        try:
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
                return int(connection.execute("SELECT counter FROM state").fetchone()[0])
        except sqlite3.Error as exc:
            return str(exc)

    def _warnings(self, mounts: dict[str, Mount]) -> tuple[Counter[str], dict[str, list[str]]]:
        """How many lines each log has at WARNING and above, and all its lines."""
        logs = {name: mount.mounted.log_file for name, mount in mounts.items()}
        logs["writer"] = self._directory / "writer.log"
        counts: Counter[str] = Counter()
        lines: dict[str, list[str]] = {}
        for name, path in logs.items():
            text = path.read_text(errors="replace")
            lines[name] = text.splitlines()
            for level in ("WARNING", "ERROR", "CRITICAL"):
                counts[f"{level}, {name}"] += sum(f" {level} " in line for line in text.splitlines())
            if "bug of litereplica" in text:
                self._faults.append(f"the {name} says that it has a bug")
        return counts, lines

    def _check_replica(self, writer: Writer, last: State) -> None:
        """The writer ends in order; the replica is sound and has the last state."""
        if (code := writer.end()) != 0:
            self._faults.append(f"the writer ended with exit code {code}")
        restored = self._directory / "restored.db"
        for arguments in (["verify", self._url], ["restore", "-o", str(restored), self._url]):
            done = subprocess.run(
                [litereplica_binary(), *arguments],
                env=self._server.environment(),
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            if done.returncode != 0:
                self._faults.append(f"{arguments[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
        if not restored.exists():
            return
        with contextlib.closing(sqlite3.connect(restored)) as connection:
            state = read_state(lambda sql: connection.execute(sql).fetchall(), ballast=1)
            verdict = connection.execute("PRAGMA integrity_check").fetchall()
        if state != last or verdict != [("ok",)]:
            self._faults.append(f"restored: {state} instead of {last}, integrity_check: {verdict}")


def command_line(plan: Plan) -> str:
    """How to run this again."""
    return f"scripts/soak --minutes {plan.minutes:g} --seed {plan.seed} --rate {plan.rate:g}"
