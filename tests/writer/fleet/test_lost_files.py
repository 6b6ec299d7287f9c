"""A replica that loses files while its writer runs: a snapshot of the database makes it whole again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from litereplica.compaction.levels import Levels
from litereplica.errors import DamagedFile, ReplicaError
from litereplica.ltxstore.store import open_ltx_store
from litereplica.restore.restore import restore
from litereplica.writer import maintenance
from litereplica.writer.settings import DatabaseTarget, DirectoryTarget, Target
from tests.helpers.app import Application
from tests.helpers.waiting import wait_until
from tests.writer.fleet.fleets import WITHOUT_LEASE, running, soon_at_rest

__all__ = ["soon_at_rest"]

pytestmark = pytest.mark.slow

SETTINGS = replace(WITHOUT_LEASE, levels=Levels((1000,), None))


def files(replica: Path, level: int) -> list[Path]:
    return sorted((replica / f"ltx/{level}").glob("*.ltx"))


def delete_the_newest(replica: Path) -> None:
    for path in files(replica, 0)[-2:]:
        path.unlink()


def delete_all(replica: Path) -> None:
    shutil.rmtree(replica / "ltx", ignore_errors=True)  # the writer adds files meanwhile


def damage_the_newest(replica: Path) -> None:
    path = files(replica, 0)[-1]
    path.write_bytes(path.read_bytes()[:-1] + b"?")


async def is_whole(replica: Path, output: Path, expected: bytes) -> bool:
    store = open_ltx_store(f"file://{replica}")
    try:
        await restore(store, output, force=True)
    except (DamagedFile, ReplicaError):
        return False
    finally:
        await store.aclose()
    return await trio.Path(output).read_bytes() == expected


@pytest.mark.parametrize("is_parked", [False, True])
@pytest.mark.parametrize("lose", [delete_the_newest, delete_all, damage_the_newest])
@pytest.mark.usefixtures("soon_at_rest")
async def test_a_replica_that_loses_files_is_made_whole_from_the_database(
    tmp_path: Path,
    lose: Callable[[Path], None],
    is_parked: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if lose is delete_all:  # no merge needs what was merged before
        monkeypatch.setattr(maintenance, "LISTING_INTERVAL_MS", 0)
    (tmp_path / "databases").mkdir()
    path, replica = tmp_path / "databases/app.db", tmp_path / "replica"
    target: Target
    with Application(path) as app:
        await app("CREATE TABLE t (x)")
        if is_parked:
            target = DirectoryTarget(path.parent, f"file://{replica}", settings=SETTINGS)
            replica /= "app.db"
        else:
            target = DatabaseTarget(path, f"file://{replica}", settings=SETTINGS)
        async with running([target]) as fleet:
            while "has lost files" not in caplog.text:
                (before,) = fleet.statistics().databases
                await app("INSERT INTO t VALUES (randomblob(1000))")
                await wait_until(lambda txid=before.txid: fleet.statistics().databases[0].txid > txid)  # type: ignore[misc]
                lose(replica)
                with trio.move_on_after(2):
                    await wait_until(lambda: "has lost files" in caplog.text)
            with trio.fail_after(20):  # without another commit
                while not await is_whole(replica, tmp_path / "restored.db", await app.image()):  # noqa: ASYNC110
                    await trio.sleep(0.1)
            await app("INSERT INTO t VALUES ('afterwards')")
        assert await is_whole(replica, tmp_path / "restored.db", await app.image())
        if not is_parked:
            assert files(replica, 9)
            assert caplog.text.count("has lost files") == 1
