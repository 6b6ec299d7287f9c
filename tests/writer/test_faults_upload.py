"""A snapshot that goes to the store in parts: parts that fail, a writer that is killed or cancelled, and its memory."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from litereplica.errors import ExitCode
from litereplica.ltxstore.store import open_ltx_store
from litereplica.restore.restore import restore
from litereplica.storage import s3_upload
from litereplica.testing.s3_proxy import Exchange, Misbehaviour, S3Proxy, Trouble, s3_proxy
from tests.conftest import S3Bucket
from tests.helpers.app import Application
from tests.helpers.waiting import wait_until
from tests.writer.programs import Process, processes
from tests.writer.running import txids, until_published

pytestmark = pytest.mark.slow

PARTS = 4
PART_BYTES = 5 << 20
"""The least that S3 accepts."""
SMALL_PARTS = (
    "import sys, litereplica.storage.s3_upload as u; "
    "import litereplica.ltxstore.spooled_file as w; "
    f"u.MULTIPART_BYTES = u.PART_BYTES = w.MEMORY_BYTES = {PART_BYTES}; "
    "from litereplica.cli.main import run; sys.exit(run(sys.argv[1:]))"
)
LARGE = "INSERT INTO t VALUES (randomblob(?))"
MEBIBYTE = 1 << 20


@pytest.fixture
def proxy(s3_bucket: S3Bucket) -> Iterator[S3Proxy]:
    with s3_proxy(s3_bucket.server) as proxy:
        yield proxy


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_upload, "MULTIPART_BYTES", PART_BYTES)
    monkeypatch.setattr(s3_upload, "PART_BYTES", PART_BYTES)


def step_of(exchange: Exchange) -> str:
    """`create`, `part 1`, `complete`, `abort`; empty for what is no step of an upload."""
    part = re.search(r"partNumber=(\d+)", exchange.query)
    if part:
        return f"part {part[1]}"
    if "uploadId" in exchange.query:
        return {"POST": "complete", "DELETE": "abort"}[exchange.method]
    return "create" if "uploads" in exchange.query else ""


def uploads_left(bucket: S3Bucket) -> int:
    with bucket.server.client() as client:
        return len(client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", []))


def large_file(directory: Path) -> Path:
    path = directory / "body"
    path.write_bytes(os.urandom(PARTS * PART_BYTES))
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("trouble", [Trouble.RESET, Trouble.STATUS])
@pytest.mark.parametrize("effect", [False, True])
async def test_part_that_fails_is_sent_again_by_itself(
    tmp_path: Path, s3_bucket: S3Bucket, proxy: S3Proxy, trouble: Trouble, effect: bool
) -> None:
    steps = Counter[str]()

    def plan(exchange: Exchange) -> Misbehaviour | None:
        steps[step_of(exchange)] += 1
        fails = step_of(exchange) in ("part 2", "part 4") and steps[step_of(exchange)] <= 2
        return Misbehaviour(trouble, effect) if fails else None

    proxy.plan = plan
    body = large_file(tmp_path)
    storage = open_ltx_store(proxy.url(s3_bucket.name)).storage
    await storage.put_if_absent("0000/large", body)
    assert steps == {"create": 1, "complete": 1} | {
        f"part {number}": 3 if number in (2, 4) else 1 for number in range(1, PARTS + 1)
    }
    assert (await storage.get("0000/large")).data == body.read_bytes()
    assert uploads_left(s3_bucket) == 0
    await storage.aclose()


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
async def test_cancelled_upload_leaves_no_parts_although_some_arrive_after_the_abort(
    tmp_path: Path, s3_bucket: S3Bucket, proxy: S3Proxy
) -> None:
    steps = Counter[str]()

    def plan(exchange: Exchange) -> Misbehaviour | None:
        steps[step_of(exchange)] += 1
        return Misbehaviour(Trouble.LATE, seconds=1.0) if step_of(exchange) == "part 3" else None

    proxy.plan = plan
    storage = open_ltx_store(proxy.url(s3_bucket.name)).storage
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.put_if_absent, "0000/large", large_file(tmp_path))
        await wait_until(lambda: steps["part 3"] == 1)
        nursery.cancel_scope.cancel()
    assert steps["complete"] == 0
    assert steps["abort"] == 2, "once at once, and once when the late part had arrived"
    assert uploads_left(s3_bucket) == 0
    await storage.aclose()


STEPS = [("create", True), ("part 1", True), ("part 4", False), ("complete", False), ("complete", True)]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "effect"), STEPS)
async def test_writer_that_is_killed_during_an_upload_loses_nothing(
    tmp_path: Path, s3_bucket: S3Bucket, proxy: S3Proxy, step: str, effect: bool
) -> None:
    store = open_ltx_store(s3_bucket.url)
    url = proxy.url(s3_bucket.name)
    with Application(tmp_path / "app.db") as app, processes() as started:
        await app("CREATE TABLE t (x)")
        await app(LARGE, PARTS * PART_BYTES - MEBIBYTE)
        started.append(writer := Process(app.database, url, program=SMALL_PARTS))
        proxy.plan = killing(lambda: os.kill(writer.pid, signal.SIGKILL), step, effect=effect)
        assert await writer.ended() == -signal.SIGKILL, writer.log.read_text()
        proxy.plan = lambda exchange: None
        before = await txids(store)
        assert before == ([1] if step == "complete" and effect else [])
        await app("INSERT INTO t VALUES ('after the kill')")
        started.append(writer := Process(app.database, url, program=SMALL_PARTS))
        expected = await until_published(store, app)
        assert await writer.stop() == ExitCode.OK, writer.log.read_text()
    published = await txids(store)
    assert published == list(range(1, len(published) + 1))
    await restore(store, tmp_path / "restored.db")
    assert (tmp_path / "restored.db").read_bytes() == expected
    await store.aclose()


def killing(kill: Callable[[], None], step: str, *, effect: bool) -> Callable[[Exchange], Misbehaviour | None]:
    """Kill the client when it comes to a step, before or after the store has carried it out."""
    killed = False

    def plan(exchange: Exchange) -> Misbehaviour | None:
        nonlocal killed
        if killed or step_of(exchange) != step:
            return None
        killed = True
        return Misbehaviour(Trouble.RESET, effect, action=kill)

    return plan


@pytest.mark.slow
async def test_first_snapshot_of_a_large_database_takes_bounded_memory_while_the_application_writes(
    tmp_path: Path, s3_bucket: S3Bucket
) -> None:
    size = 192 * MEBIBYTE
    store = open_ltx_store(s3_bucket.url)
    with Application(tmp_path / "app.db") as app, processes() as started:
        await app("CREATE TABLE t (x)")
        for _ in range(16):
            await app(LARGE, size // 16)
        started.append(writer := Process(app.database, s3_bucket.url))
        commits = 0
        while not writer.has_said("published"):
            assert writer.runs, writer.log.read_text()
            await app("INSERT INTO t VALUES (randomblob(1000))")
            commits += 1
            await trio.sleep(0.01)
        assert commits > 20
        peak = peak_memory(writer.pid)
        await app("INSERT INTO t VALUES ('last')")
        assert await writer.stop() == ExitCode.OK, writer.log.read_text()  # what is left is published
        expected = await app.image()
    await restore(store, tmp_path / "restored.db")
    assert (tmp_path / "restored.db").read_bytes() == expected
    assert peak < size, f"{peak / MEBIBYTE:.0f} MiB for a database of {size / MEBIBYTE:.0f} MiB"
    await store.aclose()


def peak_memory(pid: int) -> int:
    """The most that a process has had resident, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024
