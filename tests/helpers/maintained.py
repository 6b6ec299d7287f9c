"""Our writer with short levels, in a process of its own: everything that takes hours takes seconds.

    python -m tests.helpers.maintained DATABASE URL

It publishes, compacts, makes snapshots and deletes until SIGTERM; then it prints what it has done, as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from litereplica.compaction.levels import Levels
from litereplica.compaction.retention import RetentionPolicy
from litereplica.writer import maintenance as maintenance_module
from litereplica.writer.fleet import managed_database
from litereplica.writer.fleet.supervisor import open_fleet
from litereplica.writer.maintenance import Maintenance
from litereplica.writer.settings import DatabaseTarget, WriterSettings

LEVELS = Levels((1000, 3000, 6000), 10_000)
POLICY = RetentionPolicy(l0_ms=2000, snapshot_ms=4000)
END_DEADLINE_S = 30.0


@contextmanager
def maintained(database: Path, url: str) -> Iterator[dict[str, Any]]:
    """Run it until the block is left. Then the dictionary has its statistics, and `log`, the warnings about them."""
    command = [sys.executable, "-m", "tests.helpers.maintained", str(database), url]
    log_path = database.with_name("maintained.log")
    done: dict[str, Any] = {}
    with (
        log_path.open("w") as log,
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=Path(__file__).parents[2],
        ) as process,
    ):
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "started\n", log_path.read_text()
            yield done
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=END_DEADLINE_S)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 0, log_path.read_text()
    done |= json.loads(output)
    done["log"] = log_path.read_text()


async def _run(database: Path, url: str) -> None:
    maintenance_module.DELETION_INTERVAL_MS = 500
    made: list[Maintenance] = []

    class Watched(Maintenance):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    managed_database.Maintenance = Watched  # type: ignore[attr-defined]  # of this process
    target = DatabaseTarget(database, url, WriterSettings(sync_interval_s=0.02, levels=LEVELS, retention=POLICY))
    stop = trio.Event()

    async def wait_for_signal() -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            await anext(signals)
            stop.set()

    async with open_fleet([target]) as fleet, trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_signal)
        async with trio.open_nursery() as running:
            await running.start(fleet.run, stop)
            print("started", flush=True)
        nursery.cancel_scope.cancel()
    (maintenance,) = made
    print(json.dumps(dataclasses.asdict(maintenance.statistics())))


if __name__ == "__main__":
    logging.getLogger("litereplica.writer.maintenance").addHandler(logging.StreamHandler())
    trio.run(_run, Path(sys.argv[1]), sys.argv[2])
