"""Our writer, as a command beside the benchmark."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.mounts import litereplica_binary

END_DEADLINE_S = 30


@contextmanager
def replicating(database: Path, url: str, *, sync_interval: str) -> Iterator[int]:
    """Publish a database's changes while the block runs; the first snapshot is in the replica when it begins. The
    writer's process ID."""
    command = [litereplica_binary(), "replicate", str(database), url]
    subprocess.run([*command, "--once"], check=True, capture_output=True)
    process = subprocess.Popen([*command, "--sync-interval", sync_interval], stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(END_DEADLINE_S)
