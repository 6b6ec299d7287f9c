"""Two writers of one replica: one publishes, the other is refused, stands by, or stops. Nothing is lost."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from litereplica.compaction.compaction import compact_level
from litereplica.errors import ConflictError, ExitCode
from litereplica.ltxstore.lease import TERM_MS
from litereplica.ltxstore.lease_record import LOCK_KEY, Lease
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.restore.restore import restore
from litereplica.testing.s3_proxy import Exchange, Misbehaviour, S3Proxy, Trouble, s3_proxy
from litereplica.writer.publish.lease_keeper import LeaseMode
from litereplica.writer.replicator import open_replicator
from litereplica.writer.replicator_options import ReplicatorOptions
from tests.conftest import S3Bucket
from tests.helpers.app import Application
from tests.helpers.fold import fold
from tests.helpers.waiting import wait_until
from tests.writer.programs import DEADLINE_S, SHORT, SHORT_TERM_S, Process, processes
from tests.writer.running import memory_store, page_counts, publish_once, txids, until_published

pytestmark = pytest.mark.slow


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A replica that does not exist yet, in a directory and in a real object store."""
    if request.param == "file":
        return f"file://{tmp_path}/replica"
    return str(request.getfixturevalue("s3_bucket").url)


@pytest.fixture
def applications(tmp_path: Path) -> Iterator[list[Application]]:
    """Two with the same database, each of its own."""
    started = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        started.append(Application(tmp_path / name / "app.db", setup="CREATE TABLE t (x);"))
    yield started
    for app in started:
        app.close()


async def objects(store: LTXStore) -> dict[int, bytes]:
    """Each file of level 0."""
    return {info.max_txid: (await store.get(info)).data for info in await store.list_level(0)}


@asynccontextmanager
async def steady_commits(app: Application) -> AsyncIterator[None]:
    """Ten a second, until the block is left."""
    ended = trio.Event()

    async def commit() -> None:
        for number in itertools.count():
            await app("INSERT INTO t VALUES (?)", number)
            with trio.move_on_after(0.1):
                await ended.wait()
            if ended.is_set():
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(commit)
        yield
        ended.set()


async def read_lease(store: LTXStore) -> Lease:
    return Lease.decode((await store.storage.get(LOCK_KEY)).data)


def restore_over(url: str, app: Application) -> None:
    """What the error tells a user to do, with the writer stopped."""
    app.disconnect()
    trio.from_thread.run(_restore, url, app.database)


async def _restore(url: str, database: Path) -> None:
    store = open_ltx_store(url)
    await restore(store, database, force=True)
    await store.aclose()


@pytest.mark.slow
async def test_second_process_is_refused_by_name_and_a_killed_one_goes_on_at_once(
    url: str, applications: list[Application]
) -> None:
    first_app, second_app = applications
    store = open_ltx_store(url)
    with processes() as started:
        started.append(first := Process(first_app.database, url))
        await first.until_said("published")
        started.append(second := Process(second_app.database, url))
        assert await second.ended() == ExitCode.CONFLICT
        assert re.search(
            rf"error: .* is leased to \S+:{first.pid} \(generation 1\) until .*, \d+ s from now: stop", second.error
        )
        await first_app("INSERT INTO t VALUES (1)")
        await until_published(store, first_app)

        first.kill()
        await first_app("INSERT INTO t VALUES (2)")
        killed = await read_lease(store)
        started.append(again := Process(first_app.database, url))
        await again.until_said("generation 2; it was ours")
        await until_published(store, first_app)
        renewed = await read_lease(store)
        assert renewed.expires_ms - TERM_MS < killed.expires_ms, "it waited for its own lease to expire"
        assert await again.stop() == ExitCode.OK
        await store.aclose()


@pytest.mark.slow
@pytest.mark.parametrize(("url", "end"), [("file", signal.SIGTERM), ("s3", signal.SIGKILL)], indirect=["url"])
async def test_standby_that_was_left_behind_is_refused_and_takes_over_once_it_is_restored(
    url: str, applications: list[Application], end: signal.Signals
) -> None:
    first_app, second_app = applications
    store = open_ltx_store(url)
    with processes() as started:
        started.append(first := Process(first_app.database, url, program=SHORT))
        await first.until_said("published")
        async with steady_commits(first_app):  # so that the holder renews its lease
            started.append(standby := Process(second_app.database, url, "--wait-lease", program=SHORT))
            await standby.until_said("standing by")
            await trio.sleep(1.2 * SHORT_TERM_S)
            assert not standby.has_said("holding the lease")
        acknowledged = await until_published(store, first_app)
        if end is signal.SIGTERM:
            assert await first.stop() == ExitCode.OK
        else:
            first.kill()
        before = await objects(store)
        assert await standby.ended() == ExitCode.CONFLICT
        assert "does not continue" in standby.error
        assert f"litereplica restore {shlex.quote(store.url)} -o {second_app.database} --force" in standby.error
        assert "--take-over" in standby.error
        assert await objects(store) == before, "the copy that was left behind was published"

        await trio.to_thread.run_sync(restore_over, url, second_app)
        assert await second_app("SELECT max(x) FROM t") == await first_app("SELECT max(x) FROM t")
        await second_app("INSERT INTO t VALUES ('of the second')")  # before the writer is started
        started.append(standby := Process(second_app.database, url, "--wait-lease", program=SHORT))
        await standby.until_said("holding the lease")
        await second_app("INSERT INTO t VALUES ('and another')")
        assert await until_published(store, second_app) != acknowledged
        after = await objects(store)
        assert before.items() <= after.items()
        assert list(after) == list(range(1, len(after) + 1))
        assert await standby.stop() == ExitCode.OK
        await store.aclose()


@pytest.mark.slow
async def test_suspended_holder_stops_when_it_finds_that_another_took_over(
    url: str, applications: list[Application]
) -> None:
    first_app, second_app = applications
    store = open_ltx_store(url)
    with processes() as started:
        started.append(first := Process(first_app.database, url, program=SHORT))
        await first.until_said("published")
        os.kill(first.pid, signal.SIGSTOP)
        started.append(standby := Process(second_app.database, url, "--wait-lease", program=SHORT))
        await standby.until_said("holding the lease")
        await second_app("INSERT INTO t VALUES ('of the second')")
        expected = await until_published(store, second_app)
        before = await objects(store)
        await first_app("INSERT INTO t VALUES ('of the first')")
        os.kill(first.pid, signal.SIGCONT)
        assert await first.ended() == ExitCode.CONFLICT
        assert "the lease of" in first.error
        assert await until_published(store, second_app) == expected
        assert await objects(store) == before
        assert await standby.stop() == ExitCode.OK
        await store.aclose()


@pytest.mark.slow
async def test_two_processes_without_a_lease_lose_nothing_and_one_of_them_stops(
    url: str, applications: list[Application]
) -> None:
    store = open_ltx_store(url)
    with processes() as started:
        for app in applications:
            started.append(process := Process(app.database, url, "--no-lease"))
            await process.until_said("replicating")
        stopped: list[int] = []
        number = 0
        with trio.fail_after(DEADLINE_S):
            while not stopped:
                number += 1
                for app in applications:
                    await app("INSERT INTO t VALUES (?)", f"{app.database} {number}")
                stopped = [index for index, each in enumerate(started) if not each.runs]
        (loser,) = stopped
        assert await started[loser].ended() == ExitCode.CONFLICT
        assert started[loser].has_said("another writer has published TXID")
        winner = 1 - loser
        await until_published(store, applications[winner])
        assert await started[winner].stop() == ExitCode.OK
        published = await txids(store)
        assert published == list(range(1, len(published) + 1))
        await store.aclose()


# --- taking over, in one process

ROWS = "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) SELECT i FROM n"


async def take_over(database: Path, store: LTXStore, mode: LeaseMode = LeaseMode.WAIT) -> None:
    """Publish once what there is, as a writer that need not wait any more."""
    async with open_replicator(database, store, ReplicatorOptions(lease=mode)) as replicator:
        await replicator.publish_once()


@pytest.mark.logs("publishing it as the newest state")
async def test_stale_copy_is_refused_although_nobody_holds_the_lease_any_more(
    applications: list[Application],
) -> None:
    first, stale = applications
    store = memory_store()
    await publish_once(first.database, store)
    await first("INSERT INTO t VALUES (1)")
    await publish_once(first.database, store)
    for _ in range(2):  # what the first refusal has learnt of the replica must not make the second start a success
        with pytest.raises(ConflictError, match="newest TXID 0000000000000002 was published by another writer"):
            await take_over(stale.database, store)
        assert await txids(store) == [1, 2]
    await publish_once(stale.database, store, take_over=True)
    assert await fold(store) == await stale.image()


async def test_writer_that_was_overtaken_is_refused_although_it_has_published_before(
    applications: list[Application],
) -> None:
    overtaken, newer = applications
    store = memory_store()
    await overtaken(ROWS)
    await take_over(overtaken.database, store)
    newer.disconnect()
    await restore(store, newer.database, force=True)
    await newer("INSERT INTO t VALUES ('newer')")
    await take_over(newer.database, store)
    assert await txids(store) == [1, 2]
    await overtaken("INSERT INTO t VALUES ('older')")
    for _ in range(2):
        with pytest.raises(ConflictError, match="does not continue"):
            await take_over(overtaken.database, store)
    assert await fold(store) == await newer.image()


@pytest.mark.parametrize("compacted", [False, True])
async def test_last_publisher_takes_over_from_itself_whatever_was_committed_meanwhile(
    applications: list[Application], compacted: bool
) -> None:
    app, _ = applications
    store = memory_store()
    await app(ROWS)
    await take_over(app.database, store)
    await app("INSERT INTO t VALUES ('with a writer')")
    await take_over(app.database, store)
    if compacted:  # the L0 files, and with them the newest checksum, are gone
        assert await compact_level(store, 1) is not None
        await store.delete(await store.list_level(0))
    await app("DELETE FROM t WHERE x < 100")
    await app("PRAGMA wal_checkpoint(TRUNCATE)")
    await app("INSERT INTO t VALUES ('without one')")
    await take_over(app.database, store)
    assert await fold(store) == await app.image()


async def test_restored_copy_takes_over_without_its_state_and_with_its_own_commits_in_the_wal(
    applications: list[Application],
) -> None:
    first, second = applications
    store = memory_store()
    await first(ROWS)
    await publish_once(first.database, store)
    second.disconnect()
    await restore(store, second.database, force=True)
    await take_over(second.database, store)
    assert await txids(store) == [1], "equal, yet published"
    await first("INSERT INTO t VALUES ('of the first')")
    await publish_once(first.database, store)
    second.disconnect()
    await restore(store, second.database, force=True)
    await second("INSERT INTO t VALUES ('before the writer')")
    await take_over(second.database, store)
    assert await fold(store) == await second.image()
    assert (await page_counts(store))[2] < 5


# --- stores that do not honour conditions


@pytest.fixture
def proxy(s3_bucket: S3Bucket) -> Iterator[S3Proxy]:
    with s3_proxy(s3_bucket.server) as proxy:
        yield proxy


def without_conditions(exchange: Exchange) -> Misbehaviour | None:
    """A store that does not know them."""
    return Misbehaviour(Trouble.STATUS, status=501) if exchange.is_conditional else None


@pytest.mark.slow
@pytest.mark.parametrize("ignores", [True, False], ids=["ignored", "refused"])
async def test_store_without_conditions_is_refused_and_used_with_a_warning_when_the_user_insists(
    s3_bucket: S3Bucket, proxy: S3Proxy, applications: list[Application], ignores: bool
) -> None:
    app, other = applications
    proxy.ignores_conditions = ignores
    if not ignores:
        proxy.plan = without_conditions
    url = proxy.url(s3_bucket.name)
    store = open_ltx_store(s3_bucket.url)
    with processes() as started:
        started.append(refused := Process(app.database, url))
        assert await refused.ended() == ExitCode.STORE
        expected = "ignores If-None-Match on a put" if ignores else "does not support If-None-Match on a put"
        assert expected in refused.error
        assert "add --no-lease" in refused.error
        assert not await txids(store)

        started.append(writer := Process(app.database, url, "--no-lease"))
        await writer.until_said("a second writer would overwrite the files of this one")
        await app(ROWS)
        await until_published(store, app)
        before = await objects(store)
        assert await writer.stop() == ExitCode.OK

        await other("INSERT INTO t VALUES ('of another')")  # one after the other there is no harm in two of them
        started.append(second := Process(other.database, url, "--no-lease", "--take-over"))
        await until_published(store, other)
        assert await second.stop() == ExitCode.OK
        after = await objects(store)
        assert before.items() <= after.items()
        assert all(len(proxy.stored[path]) == 1 for path in proxy.sent if path.endswith(".ltx"))
        await store.aclose()


@pytest.mark.slow
async def test_writer_finds_that_its_next_name_is_taken_although_the_store_ignores_conditions(
    s3_bucket: S3Bucket, proxy: S3Proxy, applications: list[Application]
) -> None:
    proxy.ignores_conditions = True
    url = proxy.url(s3_bucket.name)
    store = open_ltx_store(s3_bucket.url)
    first, second = applications
    with processes() as started:
        started.append(slower := Process(first.database, url, "--no-lease"))
        await slower.until_said("published")
        os.kill(slower.pid, signal.SIGSTOP)
        started.append(faster := Process(second.database, url, "--no-lease"))
        await second("INSERT INTO t VALUES ('of the second')")
        expected = await until_published(store, second)
        await first("INSERT INTO t VALUES ('of the first')")
        os.kill(slower.pid, signal.SIGCONT)
        assert await slower.ended() == ExitCode.CONFLICT
        assert "another writer has published TXID" in slower.error
        assert await until_published(store, second) == expected
        assert all(len(proxy.stored[path]) == 1 for path in proxy.sent if path.endswith(".ltx"))
        assert await faster.stop() == ExitCode.OK
        await store.aclose()


@pytest.mark.slow
async def test_put_that_arrives_after_the_lease_has_changed_hands_replaces_nothing(
    s3_bucket: S3Bucket, proxy: S3Proxy, applications: list[Application]
) -> None:
    """The holder is suspended, and its request is on its way for longer than the lease lasts."""
    late = "0000000000000002-0000000000000002.ltx"
    under_way, released = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def wait_until_released() -> None:
        released.wait(3 * DEADLINE_S)

    def plan(exchange: Exchange) -> Misbehaviour | None:
        if under_way.is_set() or exchange.method != "PUT" or not exchange.path.endswith(late):
            return None
        trio.from_thread.run_sync(under_way.set, trio_token=token)
        return Misbehaviour(Trouble.LATE, seconds=0, action=wait_until_released)

    url = proxy.url(s3_bucket.name)
    store = open_ltx_store(s3_bucket.url)
    first_app, second_app = applications
    with processes() as started:
        started.append(first := Process(first_app.database, url, program=SHORT))
        await first.until_said("published")
        proxy.plan = plan
        await first_app("INSERT INTO t VALUES ('late')")
        with trio.fail_after(DEADLINE_S):
            await under_way.wait()
        os.kill(first.pid, signal.SIGSTOP)
        started.append(standby := Process(second_app.database, s3_bucket.url, "--wait-lease", program=SHORT))
        await standby.until_said("holding the lease")
        await second_app("INSERT INTO t VALUES ('of the second')")
        expected = await until_published(store, second_app)
        before = await objects(store)
        assert not any(path.endswith(late) for path in proxy.answers), "the late request came too soon"
        released.set()
        await wait_until(lambda: [412] in proxy.answers.values(), within_s=DEADLINE_S)
        assert await objects(store) == before
        assert not any(path.endswith(late) for path in proxy.stored)
        os.kill(first.pid, signal.SIGCONT)
        assert await first.ended() == ExitCode.CONFLICT
        assert await until_published(store, second_app) == expected
        assert await standby.stop() == ExitCode.OK
        await store.aclose()
