"""`replicate --once --force-snapshot`: a snapshot that is made from the database, not from the replica's files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from litereplica.errors import ExitCode
from litereplica.ltxstore.store import open_ltx_store
from litereplica.writer.database.state_directory import StateDirectory
from tests.cli.program import program
from tests.conftest import S3Bucket
from tests.helpers.app import Application

pytestmark = pytest.mark.slow

OPTIONS = ("--once", "--force-snapshot")


def snapshots(replica: Path) -> list[str]:
    return sorted(path.name for path in (replica / "ltx/9").glob("*.ltx"))


@pytest.mark.parametrize("reader", [False, True])
async def test_snapshot_from_the_database_needs_no_other_file(tmp_path: Path, reader: bool) -> None:
    """With a long reader a part of the database is in the WAL only."""
    replica = tmp_path / "replica"
    store = open_ltx_store(f"file://{replica}")
    with Application(tmp_path / "app.db") as app, Application(tmp_path / "app.db") as other:
        await app("CREATE TABLE t (x)")
        assert program("replicate", app.database, store.url, "--once").returncode == 0
        if reader:
            await other("BEGIN")
            await other("SELECT * FROM t")
        for _ in range(3):
            await app("INSERT INTO t VALUES (randomblob(20000))")
            assert program("replicate", app.database, store.url, "--once").returncode == 0
        done = program("replicate", app.database, store.url, *OPTIONS)
        assert done.returncode == 0, done.stderr
        assert snapshots(replica) == [f"{1:016x}-{4:016x}.ltx"]
        for path in (replica / "ltx/0").glob("*.ltx"):
            path.unlink()
        assert program("restore", store.url, "-o", tmp_path / "restored.db").returncode == 0
        assert (tmp_path / "restored.db").read_bytes() == await app.image()


async def test_state_that_has_a_snapshot_is_published_again(tmp_path: Path) -> None:
    """The one that is there may be damaged: no file replaces another."""
    replica = tmp_path / "replica"
    url = f"file://{replica}"
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        assert program("replicate", app.database, url, *OPTIONS).returncode == 0
        assert program("replicate", app.database, url, *OPTIONS).returncode == 0
        assert snapshots(replica) == [f"{1:016x}-{txid:016x}.ltx" for txid in (1, 2)]
        assert program("verify", url).returncode == 0
        (replica / f"ltx/9/{1:016x}-{1:016x}.ltx").write_bytes(b"damaged")
        for path in (replica / "ltx/0").glob("*.ltx"):
            path.write_bytes(b"damaged")
        assert program("restore", url, "-o", tmp_path / "restored.db").returncode == 0
        assert (tmp_path / "restored.db").read_bytes() == await app.image()


def test_it_needs_once(tmp_path: Path) -> None:
    done = program("replicate", tmp_path / "app.db", f"file://{tmp_path}/replica", "--force-snapshot")
    assert (done.returncode, "--force-snapshot needs --once" in done.stderr) == (ExitCode.USAGE, True)


async def test_retention_is_enforced_once(tmp_path: Path) -> None:
    replica = tmp_path / "replica"
    url = f"file://{replica}"
    file = tmp_path / "litestream.yml"
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        file.write_text(
            f"l0-retention: 1ms\nsnapshot: {{retention: 1ms}}\ndbs: [{{path: {app.database}, replica: {{url: {url}}}}}]"
        )
        for _ in range(3):
            await app("INSERT INTO t VALUES (1)")
            assert program("replicate", app.database, url, *OPTIONS).returncode == 0
        assert len(snapshots(replica)) == 3
        refused = program("replicate", "-enforce-retention", "-config", file)
        assert (refused.returncode, "needs --once" in refused.stderr) == (ExitCode.USAGE, True)
        done = program("replicate", "-once", "-enforce-retention", "-config", file)
        assert done.returncode == 0, done.stderr
        assert len(snapshots(replica)) == 1
        assert program("restore", url, "-o", tmp_path / "restored.db").returncode == 0
        assert (tmp_path / "restored.db").read_bytes() == await app.image()


async def test_options_of_the_store_do_not_make_another_replica(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        assert program("replicate", app.database, s3_bucket.url, "--once").returncode == 0
        state = StateDirectory(app.database)
        with state:
            lineage = state.lineage(s3_bucket.url)
        assert lineage is not None
        url = f"{s3_bucket.url}&storageClass=STANDARD_IA&concurrency=2"
        await app("INSERT INTO t VALUES (1)")
        assert program("replicate", app.database, url, "--once").returncode == 0
        with state:
            assert state.lineage(url) == replace(lineage, url=url), "it knows its own files"
        assert program("verify", app.database, url).returncode == 0
