"""What the real Litestream publishes, restored by us: byte for byte what it restores itself."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from litereplica.errors import ReplicaError
from litereplica.ltxstore.plan import plan_restore
from litereplica.ltxstore.store import open_ltx_store
from litereplica.restore import plan_reader
from litereplica.restore.follow import Follower, position_of
from litereplica.restore.restore import restore
from litereplica.testing.litestream import (
    NEVER,
    LitestreamError,
    LitestreamProcess,
    litestream_binary,
    litestream_plan,
    litestream_restore,
)
from tests.conftest import S3Bucket
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow

LEVELS_WITHIN_S = 60.0

COMPACTING = {
    "levels": [{"interval": "200ms"}, {"interval": "500ms"}],
    "snapshot": {"interval": "700ms", "retention": "10s"},
    "l0-retention": "300ms",
    "l0-retention-check-interval": "200ms",
}


def sql(db: Path, statements: str) -> str:
    done = subprocess.run(["sqlite3", "-bail", str(db)], input=statements, check=True, capture_output=True, text=True)
    return done.stdout


def make_database(db: Path, *, page_size: int, auto_vacuum: int) -> None:
    sql(
        db,
        f"""
        PRAGMA page_size={page_size}; PRAGMA auto_vacuum={auto_vacuum}; PRAGMA journal_mode=wal;
        CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB, word TEXT);
        """,
    )


def workload(page_size: int) -> Iterator[str]:
    """Statements that grow, shrink, rewrite and regrow the database; sizes in pages, roughly."""
    insert = "INSERT INTO t (body, word) SELECT randomblob({size}), 'w' || value FROM generate_series(1, {rows});"
    yield insert.format(size=page_size // 3, rows=120)
    yield "CREATE INDEX t_word ON t (word);"
    yield "UPDATE t SET body = randomblob(20) WHERE id % 3 = 0;"
    yield "DELETE FROM t WHERE id > 30;"
    yield "PRAGMA incremental_vacuum;"
    yield insert.format(size=page_size * 2, rows=20)
    yield "VACUUM;"
    yield "DELETE FROM t WHERE id % 2; DROP INDEX t_word;"
    yield "VACUUM;"
    yield insert.format(size=page_size // 5, rows=200)
    yield "PRAGMA wal_checkpoint(TRUNCATE);"
    yield "UPDATE t SET word = 'last' WHERE id = 1;"


async def assert_restored_alike(url: str, db: Path, directory: Path) -> None:
    """Our restore, Litestream's and the database itself are the same."""
    ours, theirs = directory / "ours.db", directory / "theirs.db"
    theirs.unlink(missing_ok=True)
    litestream_restore(url, theirs)
    store = open_ltx_store(url)
    result = await restore(store, ours, force=True)
    await store.aclose()
    assert ours.read_bytes() == theirs.read_bytes()
    assert sql(ours, "PRAGMA integrity_check") == "ok\n"
    assert sql(ours, ".dump t") == sql(db, ".dump t")
    assert result.size == ours.stat().st_size


@pytest.mark.parametrize("auto_vacuum", [0, 1, 2])
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
async def test_restore_of_each_state_equals_litestreams(tmp_path: Path, page_size: int, auto_vacuum: int) -> None:
    db, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    make_database(db, page_size=page_size, auto_vacuum=auto_vacuum)
    with LitestreamProcess(db, url, sync_interval=NEVER) as litestream:
        for statements in workload(page_size):
            sql(db, statements)
            litestream.sync()
            await assert_restored_alike(url, db, tmp_path)


async def test_restore_from_s3_equals_litestreams(
    tmp_path: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_reader, "PIECE_BYTES", 10_000)  # several requests a file
    db = tmp_path / "app.db"
    make_database(db, page_size=4096, auto_vacuum=2)
    with LitestreamProcess(db, s3_bucket.url, sync_interval=NEVER) as litestream:
        for statements in workload(4096):
            sql(db, statements)
            litestream.sync()
        await assert_restored_alike(s3_bucket.url, db, tmp_path)


@pytest.mark.slow
async def test_restore_while_litestream_compacts_and_deletes_equals_the_database(tmp_path: Path) -> None:
    """Levels, snapshots and deletions every few hundred milliseconds, and restores all the time."""
    db, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    make_database(db, page_size=4096, auto_vacuum=2)
    store = open_ltx_store(url)
    levels: set[int] = set()
    with LitestreamProcess(db, url, sync_interval="50ms", settings=COMPACTING) as litestream:
        for statements in [*workload(4096), *workload(4096)]:
            sql(db, statements)
            litestream.sync()
            deadline = trio.current_time() + 0.4
            while trio.current_time() < deadline:
                result = await restore(store, tmp_path / "ours.db", force=True)
                levels |= {info.level for info in result.files}
                assert sql(tmp_path / "ours.db", ".dump t") == sql(db, ".dump t")
        with trio.fail_after(LEVELS_WITHIN_S):
            while not {0, 1, 9} <= levels:
                sql(db, "UPDATE t SET word = word || '.' WHERE rowid = 1")
                litestream.sync()
                result = await restore(store, tmp_path / "ours.db", force=True)
                levels |= {info.level for info in result.files}
                assert sql(tmp_path / "ours.db", ".dump t") == sql(db, ".dump t")
    await store.aclose()


@pytest.mark.slow
async def test_plan_is_the_one_that_litestream_makes(tmp_path: Path) -> None:
    """The files of several levels, some taken away at random: both find the same plan, or none."""
    db, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    make_database(db, page_size=4096, auto_vacuum=0)
    keeping = COMPACTING | {"l0-retention": "1h", "snapshot": {"interval": "700ms", "retention": "1h"}}
    with LitestreamProcess(db, url, sync_interval=NEVER, settings=keeping) as litestream:
        for number in range(40):
            sql(db, f"INSERT INTO t (word) VALUES ({number})")
            litestream.sync()
            await trio.sleep(0.05)  # the clock drives the compactions
    files = sorted((tmp_path / "replica" / "ltx").rglob("*.ltx"))
    rng = random.Random(1)
    outcomes = Counter[bool]()
    store = open_ltx_store(url)
    for _ in range(60):
        hidden = rng.sample(files, rng.randint(0, len(files) - 1))
        for path in hidden:
            path.rename(path.with_suffix(".hidden"))
        try:
            theirs = described(litestream_plan(url))
        except LitestreamError:
            theirs = None
        try:
            ours = [(info.level, info.min_txid, info.max_txid) for info in plan_restore(await store.list_levels())]
        except ReplicaError:
            ours = None
        for path in hidden:
            path.with_suffix(".hidden").rename(path)
        if theirs is None or theirs[0][1] != 1:  # a plan without a beginning, which its restore then refuses
            assert ours is None
        else:
            first = max(row for row, file in enumerate(theirs) if file[1] == 1)
            assert ours == theirs[first:]
        outcomes[ours is None] += 1
    assert min(outcomes[True], outcomes[False]) > 5
    await store.aclose()


def described(files: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    return [(file["level"], int(file["min_txid"], 16), int(file["max_txid"], 16)) for file in files]


@pytest.mark.slow
@pytest.mark.logs("may have been made anew")
async def test_file_that_litestream_restored_and_followed_is_followed_on_by_us(tmp_path: Path) -> None:
    db, url, out = tmp_path / "app.db", f"file://{tmp_path}/replica", tmp_path / "out.db"
    make_database(db, page_size=4096, auto_vacuum=0)
    store = open_ltx_store(url)
    with LitestreamProcess(db, url, sync_interval=NEVER) as litestream:
        with following(url, out):
            for number in range(3):
                sql(db, f"INSERT INTO t (word) VALUES ('theirs {number}')")
                txid = litestream.sync()
                await wait_until(lambda txid=txid: position(out) == txid)  # type: ignore[misc] # a default
        follower = Follower(store, out, position_of(out))
        assert follower.txid == txid
        for statements in workload(4096):
            sql(db, statements)
            litestream.sync()
            await follower.advance()
            assert sql(out, ".dump") == sql(db, ".dump")
    assert sql(out, "PRAGMA integrity_check").strip() == "ok"
    await store.aclose()


def position(out: Path) -> int:
    """What Litestream has written beside the file; 0 before that."""
    try:
        return int(Path(f"{out}-txid").read_text(), 16)
    except FileNotFoundError:
        return 0


@contextmanager
def following(url: str, out: Path) -> Iterator[None]:
    """`litestream restore -f`, until the block is left."""
    command = [litestream_binary(), "restore", "-f", "-follow-interval", "50ms", "-o", str(out), url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)
