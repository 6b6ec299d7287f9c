"""The writer is killed between any two of its steps, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

import pytest
import trio

from litereplica.format.names import Layout
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.writer.crash import VARIABLE, CrashPoint
from tests.helpers.app import Application
from tests.helpers.mounts import litereplica_binary
from tests.writer.running import txids, until_published

DEADLINE_S = 20.0
RUN = (
    "import litereplica.writer.checkpoint as c, litereplica.writer.state as s, sys; "
    "c.CHECKPOINT_FRAMES = 15; c.AHEAD_FRAMES = 3; s.MEMORY_LIMIT = 4096; "
    "from litereplica.cli.main import run; sys.exit(run(sys.argv[1:]))"
)
"""The program with limits so low that a short run comes to every step."""


class Writer:
    """`litereplica replicate` as a process, with or without a crash point."""

    def __init__(self, database: Path, url: str, crash_at: str | None = None) -> None:
        python = Path(litereplica_binary()).with_name("python")
        environment = dict(os.environ) | ({VARIABLE: crash_at} if crash_at else {})
        self._process = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                python,
                "-c",
                RUN,
                "replicate",
                database,
                url,
                "--sync-interval",
                "10ms",
            ],
            env=environment,
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.runs:
            self._process.kill()
            self._process.communicate()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> int:
        """SIGTERM, unless it has ended already; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=DEADLINE_S)
        return self._process.returncode


async def small_commits(app: Application, round_: int) -> None:
    await app("INSERT INTO t VALUES (?, randomblob(900))", round_)
    await app("UPDATE t SET x = randomblob(900) WHERE n = ?", round_ - 3)


async def growing_and_shrinking(app: Application, round_: int) -> None:
    await app("INSERT INTO t VALUES (?, randomblob(40000))", round_)
    if round_ % 3 == 2:
        await app("DELETE FROM t WHERE n % 3 <> 0")
        await app("VACUUM")


WORKLOADS = {"small commits": small_commits, "growing and shrinking": growing_and_shrinking}


async def crashed(writer: Writer, app: Application, workload: str) -> None:
    """Commit until the writer has been killed."""
    deadline, round_ = time.monotonic() + DEADLINE_S, 0
    while writer.runs:
        assert time.monotonic() < deadline, "the crash point was not reached"
        await WORKLOADS[workload](app, round_)
        round_ += 1
        await trio.sleep(0.002 if round_ % 20 else 0.2)


async def started(store: LTXStore, app: Application, workload: str) -> None:
    """Commit a little, and return when something is published."""
    for round_ in range(10):
        await WORKLOADS[workload](app, round_)
    with trio.fail_after(DEADLINE_S):
        while not await txids(store):  # noqa: ASYNC110 - the writer is another process
            await trio.sleep(0.01)


async def contents(store: LTXStore) -> dict[int, bytes]:
    return {info.max_txid: (await store.get(info)).data for info in await store.list_level(0)}


AT_A_STOP = {CrashPoint.STOPPING, CrashPoint.CONNECTIONS_CLOSED}


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("point", CrashPoint)
async def test_killed_writer_loses_nothing_and_repeats_nothing(
    tmp_path: Path, point: CrashPoint, workload: str
) -> None:
    url = f"file://{tmp_path}/replica"
    store = open_ltx_store(url)
    assert store.layout is Layout.FILE
    with Application(tmp_path / "app.db", page_size=1024) as app:
        await app("CREATE TABLE t (n, x)")
        await app("INSERT INTO t VALUES (0, randomblob(30000))")
        once = (*AT_A_STOP, CrashPoint.SOURCE_OPENED, CrashPoint.ATTACHED, CrashPoint.MARK_WRITTEN)
        times = 1 if point in once or point.startswith("start") else 3
        with Writer(app.database, url, f"{point}:{times}") as writer:
            if point in AT_A_STOP:
                await started(store, app, workload)
            else:
                await crashed(writer, app, workload)
            assert await trio.to_thread.run_sync(writer.stop) == -signal.SIGKILL
        before = await contents(store)
        for round_ in range(100, 105):
            await WORKLOADS[workload](app, round_)
        with Writer(app.database, url) as writer:
            await until_published(store, app)
            assert await trio.to_thread.run_sync(writer.stop) == 0
        after = await contents(store)
    assert before.items() <= after.items(), "an acknowledged TXID was lost or changed"
    assert list(after) == list(range(1, len(after) + 1))
