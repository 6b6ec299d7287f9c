"""The real Litestream: a process that replicates one database, and its one-shot commands.

Owns the process, its configuration file and its control socket. A test learns that its commits are in the store from
`sync`, which asks Litestream to publish and returns when it has: no waiting for luck. The process ends with
`stop` (or `with`), and with the test process itself if that is killed.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

START_DEADLINE_S = 30.0
SYNC_DEADLINE_S = 60
STOP_DEADLINE_S = 30.0
COMMAND_DEADLINE_S = 120.0

NEVER = "24h"
"""An interval that no test lives to see."""


class LitestreamError(Exception):
    """The process or the command answered with an error."""


@dataclass(frozen=True, slots=True)
class Completed:
    """What a one-shot command did."""

    code: int
    stdout: str
    stderr: str


class LitestreamProcess:
    """Litestream replicating `db` to `url` until `stop`.

    `sync_interval` is a Go duration; with `NEVER`, only `sync` publishes, so that the test decides which commits
    share a file. `settings` and `db_settings` are merged into the configuration (its top level, the database's
    entry), for instance `settings={"levels": [{"interval": "300ms"}], "l0-retention": "1s"}`.
    `environment` replaces the child's environment; `AWS_CA_BUNDLE` is never passed on, since it makes
    Litestream refuse http endpoints.

    >>> with LitestreamProcess(tmp_path / "app.db", f"file://{tmp_path}/replica") as litestream:
    ...     subprocess.run(["sqlite3", tmp_path / "app.db", "INSERT INTO t VALUES (1)"], check=True)
    ...     txid = litestream.sync()  # the insert is in the store, at this TXID
    """

    def __init__(
        self,
        db: Path,
        url: str,
        *,
        sync_interval: str = "100ms",
        settings: Mapping[str, Any] | None = None,
        db_settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.db = db
        self.url = url
        self._sync_interval = sync_interval
        self._settings = dict(settings or {})
        self._db_settings = dict(db_settings or {})
        self._environment = child_environment(environment)
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process, for tests that stop, continue or kill it."""
        assert self._process is not None
        return self._process.pid

    @property
    def socket(self) -> Path:
        """Its control socket."""
        assert self._directory is not None
        return self._directory / "socket"

    @property
    def log(self) -> str:
        """What it has logged so far."""
        assert self._directory is not None
        return (self._directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start, and return when the database is open and its first sync is in the store."""
        assert self._process is None
        # sockets have short names: pytest's directories are too deep
        directory = self._directory = Path(tempfile.mkdtemp(prefix="ls-"))
        config = directory / "litestream.yml"
        config.write_text(json.dumps(self._config(directory / "socket")))  # JSON is YAML
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", litestream_binary(), "replicate", "-config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )
        self._wait_until_open()

    def sync(self) -> int:
        """Publish every commit made so far; returns the TXID that the store has reached."""
        status, answer = self._request(
            "POST", "/sync", {"path": str(self.db), "wait": True, "timeout": SYNC_DEADLINE_S}
        )
        if status != http.client.OK:
            raise LitestreamError(f"sync: {answer}\n{self.log}")
        assert answer["txid"] == answer["replicated_txid"], answer
        return int(answer["txid"])

    def stop(self) -> None:
        """SIGTERM: Litestream publishes what is left and exits. Killed when it does not."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> LitestreamProcess:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _config(self, socket_path: Path) -> dict[str, Any]:
        database = {
            "path": str(self.db),
            "monitor-interval": self._sync_interval,
            "replica": {"url": self.url, "sync-interval": self._sync_interval},
        }
        return {
            "socket": {"enabled": True, "path": str(socket_path)},
            "logging": {"level": "debug"},
            "dbs": [database | self._db_settings],
        } | self._settings

    def _wait_until_open(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_DEADLINE_S
        error: Exception | None = None
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.sync()
                return
            except (OSError, LitestreamError) as exc:
                error = exc
            time.sleep(0.02)
        raise LitestreamError(f"Litestream did not start: {error}\n{self.log}")

    def _request(self, method: str, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        connection = _UnixConnection(self.socket, timeout_s=SYNC_DEADLINE_S + 5)
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def _end(self, signal_number: signal.Signals) -> None:
        process, self._process = self._process, None
        directory, self._directory = self._directory, None
        try:
            if process is not None:
                process.send_signal(signal_number)
                try:
                    process.wait(STOP_DEADLINE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    raise
        finally:
            if directory is not None:
                shutil.rmtree(directory)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, *, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def litestream_binary() -> str:
    """The pinned binary of this environment."""
    return str(Path(sys.executable).with_name("litestream"))


def child_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment in which Litestream accepts http endpoints; ours unless another is given."""
    source = os.environ if environment is None else environment
    return {name: value for name, value in source.items() if name != "AWS_CA_BUNDLE"}


def run_litestream(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> Completed:
    """Run a one-shot command to its end, whatever its exit code."""
    done = subprocess.run(
        [litestream_binary(), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        env=child_environment(environment),
        check=False,
    )
    return Completed(done.returncode, done.stdout, done.stderr)


def litestream_restore(url: str, output: Path, *, environment: Mapping[str, str] | None = None) -> None:
    """The database as Litestream itself restores it."""
    done = run_litestream("restore", "-o", output, url, environment=environment)
    if done.code != 0:
        raise LitestreamError(f"restore: {done.stderr}{done.stdout}")


def litestream_ltx(
    url: str, *, level: str = "all", environment: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """What `litestream ltx -json` lists: `level`, `min_txid`, `max_txid`, `size`, `timestamp` of each file."""
    done = run_litestream("ltx", "-json", "-level", level, url, environment=environment)
    if done.code != 0:
        raise LitestreamError(f"ltx: {done.stderr}{done.stdout}")
    files: list[dict[str, Any]] = json.loads(done.stdout)
    return files


def litestream_plan(url: str, *, environment: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The files that `litestream restore` would read, oldest first, with the keys of `litestream_ltx`."""
    output = "never-written.db"
    done = run_litestream("restore", "-dry-run", "-json", "-o", output, url, environment=environment)
    if done.code != 0:
        raise LitestreamError(f"restore -dry-run: {done.stderr}{done.stdout}")
    files: list[dict[str, Any]] = json.loads(done.stdout)["files"]
    return files
