"""Writers of ours in processes of their own, that start in a few milliseconds and can be killed.

A nursery process has imported everything; for each writer it forks. The test talks to it line by line, one JSON
request, one JSON answer. Every writer has low limits, so that short runs come to all steps.

Besides the named points of `crash_points` there are those at the store, `STORE_POINTS`: before a
request is made, or when it has taken effect and the writer does not know yet.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import trio

from litereplica import times
from litereplica.errors import LiteReplicaError
from litereplica.ltxstore import lease, spooled_file
from litereplica.ltxstore.conditions import PROBE_PREFIX
from litereplica.ltxstore.lease_record import LOCK_KEY
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.storage.base import Storage
from litereplica.storage.wrappers import Call, Operation, WrapperStorage
from litereplica.testing.faults import When
from litereplica.writer.database import checkpoint, file_watch
from litereplica.writer.publish import publisher
from litereplica.writer.publish.lease_keeper import LeaseMode
from litereplica.writer.replicator import open_replicator
from litereplica.writer.replicator_options import ReplicatorOptions
from tests.helpers import crash_points
from tests.helpers.crash_points import CrashPoint

T = TypeVar("T")

SYNC_INTERVAL_S = 0.01
CHECKPOINT_FRAMES = 15
CHECKPOINT_INTERVAL_S = 0.3
AHEAD_FRAMES = 3
MAX_BARRIER_FRAMES = 10
MEMORY_LIMIT = 4096
LEASE_TERM_MS = 300
"""Renewed when a third has passed, so that a short run comes to that."""


@dataclass(frozen=True, slots=True)
class StorePoint:
    """A request of the writer: its operation, and with what its key begins."""

    operation: Operation
    prefix: str
    when: When


STORE_POINTS = {
    "replica-listed": StorePoint(Operation.LIST, "", When.AFTER_EFFECT),
    "conditions-probed": StorePoint(Operation.DELETE_IF_MATCH, PROBE_PREFIX, When.BEFORE_EFFECT),
    "lease-created": StorePoint(Operation.PUT_IF_ABSENT, LOCK_KEY, When.AFTER_EFFECT),
    "lease-renewal-begun": StorePoint(Operation.PUT_IF_MATCH, LOCK_KEY, When.BEFORE_EFFECT),
    "lease-renewed": StorePoint(Operation.PUT_IF_MATCH, LOCK_KEY, When.AFTER_EFFECT),
    "file-stored": StorePoint(Operation.PUT_IF_ABSENT, "ltx/", When.AFTER_EFFECT),
    "lease-release-begun": StorePoint(Operation.DELETE_IF_MATCH, LOCK_KEY, When.BEFORE_EFFECT),
    "lease-deleted": StorePoint(Operation.DELETE_IF_MATCH, LOCK_KEY, When.AFTER_EFFECT),
}


class CrashStorage(WrapperStorage):
    """Has the process killed at the n-th pass of a point, or at the next one if that was cut off."""

    def __init__(self, inner: Storage, point: StorePoint, passes: int) -> None:
        super().__init__(inner)
        self._point = point
        self._passes_left = passes

    async def _around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        point = self._point
        matches = call.operation is point.operation and call.key.startswith(point.prefix)
        self._passes_left -= matches
        due = matches and self._passes_left <= 0
        if due and point.when is When.BEFORE_EFFECT:
            os.kill(os.getpid(), signal.SIGKILL)
        result = await perform()
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


class WriterNursery:
    """Starts writers. One is enough for a run of tests: see `writer_nursery`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.helpers.writer_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def ask(self, **request: str | int) -> dict[str, Any]:
        """One request, and its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it; writers are to be ended before."""
        self._process.communicate(timeout=10)


@cache
def writer_nursery() -> WriterNursery:
    """The one of this process, which ends with it."""
    nursery = WriterNursery()
    atexit.register(nursery.close)
    return nursery


class WriterProcess:
    """Writers of one database, one at a time."""

    def __init__(self, database: Path, url: str) -> None:
        self._nursery = writer_nursery()
        self._database = database
        self._url = url
        self._pid = 0

    @property
    def pid(self) -> int:
        """The process of the writer that runs."""
        assert self.runs
        return self._pid

    @property
    def runs(self) -> bool:
        """Is a writer meant to be running?"""
        return self._pid != 0

    def start(
        self,
        crash_at: str = "",
        *,
        lease: LeaseMode = LeaseMode.OFF,
        barrier_frames: int = MAX_BARRIER_FRAMES,
        take_over: bool = False,
        clock_offset_ms: int = 0,
    ) -> str:
        """Start a writer; returns when it has published once, or with the error that ended it ("" is none).

        `crash_at` is a crash point and the number of the pass, as in `sending:3`, or the same with one of
        `STORE_POINTS`; the writer may then be dead. `barrier_frames`: `checkpoint.MAX_BARRIER_FRAMES`.
        The clock that stamps files is ahead by `clock_offset_ms`.
        """
        answer = self._nursery.ask(
            database=str(self._database),
            url=self._url,
            crash_at=crash_at,
            lease=lease.value,
            barrier_frames=barrier_frames,
            take_over=take_over,
            clock_offset_ms=clock_offset_ms,
        )
        self._pid = answer["pid"]
        error: str = answer.get("error", "")
        if error:
            self._wait()
        return error

    @property
    def has_ended(self) -> bool:
        """Has the one that was started ended by itself?"""
        return bool(self._nursery.ask(look=self._pid)["ended"])

    def stop(self) -> int:
        """SIGTERM, unless it has ended already: its exit code, negative for a signal."""
        os.kill(self._pid, signal.SIGTERM)
        return self._wait()

    def kill(self) -> None:
        """SIGKILL, if one runs."""
        if self.runs:
            os.kill(self._pid, signal.SIGKILL)
            self._wait()

    def _wait(self) -> int:
        code: int = self._nursery.ask(wait=self._pid)["code"]
        self._pid = 0
        return code


def _serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
        elif "look" in request:
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            answer = {"ended": os.waitid(os.P_PID, request["look"], options) is not None}
        else:
            answer = _fork(request)
        print(json.dumps(answer), flush=True)


def _fork(request: dict[str, Any]) -> dict[str, Any]:
    """Start a writer, and hear from it: a line when it has published once, another one or none when it ends."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os._exit(_run_writer(request, writing))
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.readline().strip()
    return {"pid": pid} | ({"error": said.removeprefix("error ")} if said.startswith("error ") else {})


def _run_writer(request: dict[str, Any], out: int) -> int:
    os.close(0)
    checkpoint.CHECKPOINT_FRAMES = CHECKPOINT_FRAMES
    checkpoint.CHECKPOINT_INTERVAL_S = CHECKPOINT_INTERVAL_S
    checkpoint.AHEAD_FRAMES = AHEAD_FRAMES
    checkpoint.MAX_BARRIER_FRAMES = request["barrier_frames"]
    checkpoint.PARTIAL_RETRY_S = 0.1
    file_watch.EXPLAIN_WITHIN_S = 0.5
    spooled_file.MEMORY_BYTES = MEMORY_LIMIT
    publisher.MAX_BATCH_BYTES = 200_000
    lease.TERM_MS, lease.RENEW_BEFORE_MS = LEASE_TERM_MS, 2 * LEASE_TERM_MS // 3
    store = open_ltx_store(request["url"])
    name, _, passes = request["crash_at"].partition(":")
    if name in STORE_POINTS:
        store = LTXStore(CrashStorage(store.storage, STORE_POINTS[name], int(passes)), store.layout)
    elif name:
        crash_points.install(CrashPoint(name), int(passes))
    try:
        options = ReplicatorOptions(
            lease=LeaseMode(request["lease"]),
            take_over=request["take_over"],
            sync_interval_s=SYNC_INTERVAL_S,
            now_ms=lambda: times.wall_clock_ms() + int(request["clock_offset_ms"]),
        )
        trio.run(_replicate, Path(request["database"]), store, options, out)
    except LiteReplicaError as exc:
        with suppress(BrokenPipeError):  # nobody listens any more once it has started
            os.write(out, f"error {exc}\n".encode())
        return int(exc.exit_code)
    except BaseException:  # whatever it is, the test is to see it
        os.write(out, f"error {traceback.format_exc()!r}\n".encode())
        return 1
    return 0


class _Told:
    """Tells the nursery that everything is published once."""

    def __init__(self, out: int) -> None:
        self._out = out

    def started(self, value: object = None) -> None:
        os.write(self._out, b"started\n")


async def _replicate(database: Path, store: LTXStore, options: ReplicatorOptions, out: int) -> None:
    stop = trio.Event()

    async def wait_for_signal() -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                stop.set()

    error: LiteReplicaError | None = None
    async with (
        open_replicator(database, store, options) as replicator,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(wait_for_signal)
        try:
            await replicator.run(stop, task_status=_Told(out))
        except LiteReplicaError as exc:  # not as a member of a group
            error = exc
        nursery.cancel_scope.cancel()
    await store.aclose()
    if error is not None:
        raise error


if __name__ == "__main__":
    _serve()
