"""A mount of a local replica hears of new files from the kernel, and need not wait for its next poll."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from litereplica.testing.mounts import MountedReplica
from tests.helpers.publisher import Publisher


def test_mount_of_a_directory_applies_what_is_published_at_once(tmp_path: Path) -> None:
    with Publisher(tmp_path / "primary", setup="CREATE TABLE item(name)") as publisher:
        mount = MountedReplica(publisher.url, tmp_path / "mount", poll_interval="1h")
        with mount, closing(sqlite3.connect(mount.path, isolation_level=None)) as reader:

            def rows() -> int:
                return int(reader.execute("SELECT count(*) FROM item").fetchone()[0])

            for number in range(1, 6):
                publisher.transaction("INSERT INTO item VALUES ('a')")
                mount.wait_until(lambda number=number: rows() == number)  # type: ignore[misc]
            assert mount.status()["replica"]["polls"] < 5 * 5
