"""The commands that a benchmark runs beside itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LITEREPLICA = Path(sys.executable).with_name("litereplica")


def replicate_once(database: Path, url: str) -> None:
    """Publish a database as it is."""
    subprocess.run([LITEREPLICA, "replicate", database, url, "--once"], check=True, capture_output=True)


@contextmanager
def replicating(database: Path, url: str, *, sync_interval: str) -> Iterator[None]:
    """Publish a database's changes while the block runs; the first snapshot is in the replica when it begins."""
    replicate_once(database, url)
    process = subprocess.Popen(
        [LITEREPLICA, "replicate", database, url, "--sync-interval", sync_interval], stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
