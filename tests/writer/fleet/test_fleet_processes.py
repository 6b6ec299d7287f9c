"""Two processes that replicate directories to one place: the program itself, from configuration files."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from litereplica.errors import ExitCode
from litereplica.ltxstore.lease_record import LOCK_KEY
from litereplica.ltxstore.store import LTXStore
from tests.helpers.app import Application
from tests.helpers.waiting import wait_until
from tests.writer.fleet.fleets import create, lock_files, replica
from tests.writer.programs import SHORT
from tests.writer.running import txids, until_published

pytestmark = pytest.mark.slow

DEADLINE_S = 20.0


@contextmanager
def replicating(tmp_path: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """The databases of a directory to `replica`; what it says goes to `<name>.log`."""
    config = tmp_path / f"{name}.yml"
    url = f"file://{tmp_path}/replica"
    config.write_text(
        json.dumps({"dbs": [{"dir": str(tmp_path / name), "pattern": "*.db", "watch": True, "replica": {"url": url}}]})
    )
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", SHORT, "replicate", "--config", str(config)]
    with (tmp_path / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(tmp_path: Path, name: str) -> str:
    return (tmp_path / f"{name}.log").read_text()


@pytest.mark.slow
async def test_second_process_is_refused_and_takes_the_shared_lease_over_when_the_first_was_killed(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    create([first / "a.db", first / "b.db"])
    shutil.copytree(first, second)
    with replicating(tmp_path, "first") as holder:
        for name in ("a.db", "b.db"):
            await until_there(replica(tmp_path, name))
        assert lock_files(tmp_path) == [f"replica/{LOCK_KEY}"]
        with replicating(tmp_path, "second") as refused:
            await wait_until(lambda: refused.poll() is not None, within_s=DEADLINE_S)
            assert refused.returncode == ExitCode.CONFLICT
            assert f":{holder.pid} (generation " in said(tmp_path, "second")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        await trio.sleep(3.2)  # the term of its lease
        with replicating(tmp_path, "second") as successor, Application(second / "b.db") as app:
            await app("INSERT INTO t VALUES ('of the successor')")
            await until_published(replica(tmp_path, "b.db"), app)
            successor.send_signal(signal.SIGTERM)
            await wait_until(lambda: successor.poll() is not None, within_s=DEADLINE_S)
            assert successor.returncode == ExitCode.OK
    assert await txids(replica(tmp_path, "a.db")) == [1]
    assert not lock_files(tmp_path)


async def until_there(store: LTXStore) -> None:
    """Until something is published."""
    with trio.fail_after(DEADLINE_S):
        while not await txids(store):  # noqa: ASYNC110 - it happens in another process
            await trio.sleep(0.02)
