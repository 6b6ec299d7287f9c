"""A run of the soak test: starts everything, lets it run, ends it in order, and collects what there is to judge."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
from soaking.watch import Curve, Watch

READERS = ("held", "held", "fresh", "fresh", "mmap", "cli", "holder", "past")
"""On each of the two mounts."""
CATCH_UP_S = 180.0
END_S = 120.0
RESTART_S = 180.0
DEATH_NOTICED_S = 2.0
KEPT_LINES = 100

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


@dataclass(frozen=True, slots=True)
class Requests:
    """GETs with a body that a mount made, by purpose, and the TXIDs that it applied."""

    gets: Counter[str] = field(default_factory=Counter)
    applied: int = 0

    def __add__(self, other: Requests) -> Requests:
        return Requests(self.gets + other.gets, self.applied + other.applied)

    @property
    def to_follow(self) -> float:
        """GETs in order to start and to follow, for each file applied."""
        return (self.gets["open"] + self.gets["poll"]) / max(1, self.applied)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was seen.

    `log_lines` are the last ones of the logs at WARNING and above. `faults` are what went wrong besides the readers'
    failures and wrong reads.
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
    log_lines: list[str]
    faults: list[str]


class Writer:
    """`litereplica replicate` with a configuration, which can be killed and started again."""

    def __init__(self, configuration: Path, environment: dict[str, str], log: Path) -> None:
        self._command = [litereplica_binary(), "replicate", "--config", str(configuration)]
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start; returns at once."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    def kill_and_restart(self, down_s: float) -> None:
        """SIGKILL, and start again after a while."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        time.sleep(down_s)
        self.start()

    def end(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return -signal.SIGKILL

    def has_ended(self) -> bool:
        """Whether it ended by itself."""
        return self._process is not None and self._process.poll() is not None


class Mount:
    """A mount, and what its lives have asked of the store."""

    def __init__(self, mounted: MountedReplica) -> None:
        self.mounted = mounted
        self.requests = Requests()
        self._first_txid = 0

    def begun(self) -> None:
        """A life begins."""
        self._first_txid = self.mounted.pos().txid

    def note_requests(self) -> None:
        """Before a life ends: what it asked for counts."""
        with contextlib.suppress(OSError, ValueError):
            ledger = self.mounted.status()["replica"]["ledger"]
            gets = {purpose: costs["by_operation"].get("get") for purpose, costs in ledger.items()}
            bodies = {name: each["requests"] - sum(each["errors"].values()) for name, each in gets.items() if each}
            self.requests += Requests(Counter(bodies), self.mounted.pos().txid - self._first_txid)

    def kill_and_restart(self, down_s: float) -> None:
        """SIGKILL, and mount again after a while, although the store may fail meanwhile."""
        self.note_requests()
        self.mounted.kill()
        time.sleep(down_s)
        deadline = time.monotonic() + RESTART_S
        while True:
            try:
                self.mounted.start()
            except (MountError, subprocess.TimeoutExpired, OSError):
                if time.monotonic() > deadline:
                    raise
            else:
                self.begun()
                return


class Client:
    """A reader, started on entering; one that a signal has killed can be started again."""

    def __init__(self, kind: str, mount: str, database: Path, notes: Path, seed: int) -> None:
        self._seen = Seen(kind, mount)
        self._notes = notes
        self._arguments = ("soaking.reader", kind, str(database), str(notes), str(seed))
        self._deaths: list[tuple[float, str]] = []
        self._running = contextlib.ExitStack()
        self._child: Child

    def __enter__(self) -> Client:
        self._child = self._running.enter_context(running_module(*self._arguments))
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def restart_if_killed(self) -> None:
        """Note the signal that killed it, if one has, and start it again."""
        code = self._child.process.poll()
        if code is not None:
            self._deaths.append(
                (time.time(), f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}")
            )
            self._running.close()
            self.__enter__()

    def end(self) -> Seen:
        """What it saw. It ends with its transaction, which can take as long as a read of a silent store."""
        self.restart_if_killed()
        assert self._child.process.stdin is not None
        self._child.process.stdin.close()
        self._child.process.wait(END_S)
        self._seen.read(self._notes)
        self._seen.failures += [(at - DEATH_NOTICED_S, at, what) for at, what in self._deaths]
        return self._seen


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
        with mounted:
            mount = Mount(mounted)
            mount.begun()
            yield mount

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

    def _warnings(self, mounts: dict[str, Mount]) -> tuple[Counter[str], list[str]]:
        """How many lines each log has at WARNING and above, and the last of them."""
        logs = {name: mount.mounted.log for name, mount in mounts.items()}
        logs["writer"] = (self._directory / "writer.log").read_text(errors="replace")
        counts: Counter[str] = Counter()
        last: list[str] = []
        for name, text in logs.items():
            bad = [line for line in text.splitlines() if re.search(" (WARNING|ERROR|CRITICAL) ", line)]
            last += [f"{name}: {line}" for line in bad[-KEPT_LINES:]]
            for level in ("WARNING", "ERROR", "CRITICAL"):
                counts[f"{level}, {name}"] += sum(f" {level} " in line for line in text.splitlines())
            if "bug of litereplica" in text:
                self._faults.append(f"the {name} says that it has a bug")
        return counts, last

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
