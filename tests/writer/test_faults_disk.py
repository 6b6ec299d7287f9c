"""A disk that is full: the state directory lies on a small file system of its own, which the tests fill."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from litereplica.errors import ExitCode
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.restore.restore import restore
from tests.helpers.app import Application
from tests.helpers.waiting import wait_until
from tests.writer.programs import Process, processes
from tests.writer.running import txids, until_published

pytestmark = pytest.mark.slow

DISK_BYTES = 32 << 20
LARGE = "INSERT INTO t VALUES (randomblob(12000000))"
"""More than is kept in memory."""
FULL = "No space left on device"
SAID_WITHIN_S = 30.0

CHECKPOINTING = (
    "import sys, litereplica.writer.database.checkpoint as c; c.CHECKPOINT_FRAMES = 20; "
    "from litereplica.cli.main import run; sys.exit(run(sys.argv[1:]))"
)


class SmallDisk:
    """A file system in memory, mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Leave no room at all."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def make_room(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Where the writer of `app.db` keeps its state."""
    path = tmp_path / ".app.db-litereplica"
    path.mkdir(mode=0o700)
    options = f"size={DISK_BYTES},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "litereplica-test", path], check=True)
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def store(tmp_path: Path) -> LTXStore:
    return open_ltx_store(f"file://{tmp_path}/replica")


async def until_said(writer: Process, text: str) -> None:
    await wait_until(lambda: writer.has_said(text), within_s=SAID_WITHIN_S)


@pytest.mark.slow
async def test_ls1310_full_disk_is_said_and_publishing_resumes_when_there_is_room(
    tmp_path: Path, store: LTXStore, disk: SmallDisk
) -> None:
    with Application(tmp_path / "app.db") as app, processes() as started:
        await app("CREATE TABLE t (x)")
        started.append(writer := Process(app.database, store.url))
        await writer.until_said("published")
        disk.fill()
        await app(LARGE)
        await until_said(writer, FULL)
        assert await txids(store) == [1]
        await app("INSERT INTO t VALUES ('meanwhile')")
        assert writer.runs
        disk.make_room()
        expected = await until_published(store, app)
        assert await writer.stop() == ExitCode.OK, writer.log.read_text()
        assert not list(disk.path.glob("spool-*"))
    await restore(store, tmp_path / "restored.db")
    assert (tmp_path / "restored.db").read_bytes() == expected


@pytest.mark.slow
async def test_small_transactions_are_published_without_delay_although_the_disk_is_full(
    tmp_path: Path, store: LTXStore, disk: SmallDisk
) -> None:
    with Application(tmp_path / "app.db") as app, processes() as started:
        await app("CREATE TABLE t (x)")
        started.append(writer := Process(app.database, store.url, program=CHECKPOINTING))
        await writer.until_said("published")
        disk.fill()
        for number in range(60):
            await app("INSERT INTO t VALUES (randomblob(5000))")
            if number % 10 == 9:
                await trio.sleep(0.1)  # time to mark a checkpoint
                await until_published(store, app)
        assert writer.has_said(FULL)
        assert "Traceback" not in writer.log.read_text()
        assert await writer.stop() == ExitCode.OK, writer.log.read_text()
        started.append(again := Process(app.database, store.url, program=CHECKPOINTING))
        await app("INSERT INTO t VALUES ('after a restart')")
        await until_published(store, app)
        assert await again.stop() == ExitCode.OK, again.log.read_text()


@pytest.mark.slow
async def test_first_snapshot_waits_for_room_unless_it_is_to_be_made_but_once(
    tmp_path: Path, store: LTXStore, disk: SmallDisk
) -> None:
    with Application(tmp_path / "app.db") as app, processes() as started:
        await app("CREATE TABLE t (x)")
        await app(LARGE)
        disk.fill()
        started.append(once := Process(app.database, store.url, "--once"))
        assert await once.ended() == ExitCode.ENVIRONMENT
        assert "no space left" in once.error
        started.append(writer := Process(app.database, store.url))
        await until_said(writer, FULL)
        assert writer.runs
        assert not await txids(store)
        disk.make_room()
        await writer.until_said("published")
        await until_published(store, app)
        assert "Traceback" not in writer.log.read_text()
        assert await writer.stop() == ExitCode.OK
