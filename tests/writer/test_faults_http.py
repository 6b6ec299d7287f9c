"""A real object store that times out, refuses, resets and drips, while an application commits 200 times a second."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from litereplica.errors import ExitCode
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.restore.restore import restore
from litereplica.testing.ltx_files import read_file
from litereplica.testing.s3_proxy import Exchange, Misbehaviour, S3Proxy, Trouble, s3_proxy
from tests.conftest import S3Bucket
from tests.helpers.app import Application
from tests.writer.programs import Process, processes
from tests.writer.running import until_published

pytestmark = pytest.mark.slow

FAULTY_S = float(os.environ.get("STORE_FAULTS_S", "12"))
"""How long the store misbehaves."""
COMMITS_PER_S = 200
PROBABILITY = 0.25
CATCH_UP_S = 60.0

IMPATIENT = (
    "import sys, litereplica.storage.s3_client as c, "
    "litereplica.writer.database.checkpoint as k, "
    "litereplica.writer.replicator as w; "
    "c.READ_TIMEOUT_S = 0.5; k.CHECKPOINT_FRAMES = 50; w.RETRY_MAX_S = 1.0; "
    "from litereplica.cli.main import run; sys.exit(run(sys.argv[1:]))"
)
"""The program, with a store's silence counted as a timeout early, and frequent checkpoints."""

TROUBLES = [
    *(Misbehaviour(Trouble.STATUS, effect, status) for status in (429, 500, 503) for effect in (False, True)),
    *(Misbehaviour(Trouble.RESET, effect) for effect in (False, True)),
    *(Misbehaviour(Trouble.SILENCE, effect, seconds=1.0) for effect in (False, True)),
    Misbehaviour(Trouble.DRIP, effect=True),
]


@pytest.fixture
def proxy(s3_bucket: S3Bucket) -> Iterator[S3Proxy]:
    with s3_proxy(s3_bucket.server) as proxy:
        yield proxy


async def ledger_of_each_txid(store: LTXStore, scratch: Path) -> list[int]:
    """The newest entry of the ledger at each TXID, after having checked that all before it are there."""
    pages: dict[int, bytes] = {}
    entries = []
    for info in await store.list_level(0):
        file = await read_file(store, info)
        pages |= dict(zip(file.index.pgno.tolist(), file.pages, strict=True))
        image = b"".join(pages[pgno] for pgno in range(1, file.header.commit + 1))
        entries.append(await trio.to_thread.run_sync(newest_entry, image, scratch))
    return entries


def newest_entry(image: bytes, scratch: Path) -> int:
    scratch.write_bytes(image)
    connection = sqlite3.connect(f"file:{scratch}?immutable=1", uri=True)
    try:
        count, total, newest = connection.execute("SELECT count(*), total(n), ifnull(max(n), 0) FROM ledger").fetchone()
        assert connection.execute("SELECT entries FROM balance").fetchone() == (count,), "a torn transaction"
        assert (count, total) == (newest, newest * (newest + 1) / 2), "an entry is missing"
        assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
        return int(newest)
    finally:
        connection.close()


@pytest.mark.slow
async def test_everything_arrives_in_order_and_once_although_the_store_misbehaves(
    tmp_path: Path, s3_bucket: S3Bucket, proxy: S3Proxy
) -> None:
    rng = random.Random(3)

    def plan(exchange: Exchange) -> Misbehaviour | None:
        return rng.choice(TROUBLES) if rng.random() < PROBABILITY else None

    store = open_ltx_store(s3_bucket.url)
    with Application(tmp_path / "app.db") as app, processes() as started:
        await app.script("CREATE TABLE ledger (n INTEGER PRIMARY KEY, x); CREATE TABLE balance (entries)")
        await app("INSERT INTO balance VALUES (0)")
        started.append(writer := Process(app.database, proxy.url(s3_bucket.name), program=IMPATIENT))
        await writer.until_said("published")
        proxy.plan = plan
        begun_s, entry = trio.current_time(), 0
        while trio.current_time() < begun_s + FAULTY_S:
            entry += 1
            insert = f"INSERT INTO ledger VALUES ({entry}, randomblob(300))"
            await app.script(f"BEGIN; {insert}; UPDATE balance SET entries = {entry}; COMMIT")
            await trio.sleep_until(begun_s + entry / COMMITS_PER_S)
        proxy.plan = lambda exchange: None
        with trio.fail_after(CATCH_UP_S):
            while await newest_published(store, tmp_path / "scratch.db") != entry:
                assert writer.runs, writer.log.read_text()
                await trio.sleep(0.2)
        assert await until_published(store, app)
        assert await writer.stop() == ExitCode.OK, writer.log.read_text()
        expected = await app.image()
    assert set(proxy.troubles) >= {"429 before its effect", "503 after its effect", "drip after its effect"}
    assert set(proxy.troubles) >= {"reset before its effect", "silence after its effect"}

    published = [info.max_txid for info in await store.list_level(0)]
    assert published == list(range(1, len(published) + 1))
    entries = await ledger_of_each_txid(store, tmp_path / "scratch.db")
    assert entries == sorted(entries)
    assert entries[-1] == entry
    files = {path: digests for path, digests in proxy.sent.items() if path.endswith(".ltx")}
    assert {path for path, digests in files.items() if len(digests) > 1} == set(), "a TXID with two contents"
    assert all(len(proxy.stored[path]) == 1 for path in files), "a file was stored twice"
    await restore(store, tmp_path / "restored.db")
    assert (tmp_path / "restored.db").read_bytes() == expected
    await store.aclose()


async def newest_published(store: LTXStore, scratch: Path) -> int:
    await restore(store, scratch, force=True)
    return await trio.to_thread.run_sync(lambda: newest_entry(scratch.read_bytes(), scratch))
