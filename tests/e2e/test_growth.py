"""A database of small pages grows by more than is pushed to the kernel: nothing wrong stays in the kernel's cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from litereplica.format.ltx import Header
from litereplica.format.names import Layout, file_key
from litereplica.fuse import mountpoint as mountpoints
from litereplica.testing.ltx_files import encode_file
from tests.e2e.test_healing import wait_until

PAGE_SIZE = 512


def page(pgno: int, txid: int) -> bytes:
    return (b"page %d of %d." % (pgno, txid) * 64)[:PAGE_SIZE]


def publish(root: Path, txid: int, pgnos: list[int], *, commit: int) -> None:
    path = root / file_key(Layout.FILE, 0, txid, txid)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = Header(page_size=PAGE_SIZE, commit=commit, min_txid=txid, max_txid=txid, timestamp_ms=1_700_000_000_000)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(encode_file(header, [(pgno, page(pgno, txid)) for pgno in pgnos]))
    temporary.rename(path)


def test_a_small_change_at_the_old_end_after_a_large_growth_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    """The kernel must not take the old size for the file's end: it would fill the rest of that page with zeroes."""
    root, path = tmp_path / "replica", tmp_path / "mnt"
    path.mkdir()
    publish(root, 1, list(range(1, 10)), commit=9)
    command = [sys.executable, "-m", "tests.e2e.healing_mount", f"file://{root}", str(path), str(10 * PAGE_SIZE)]
    process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE, text=True)

    def wait_for(txid: int) -> None:
        wait_until(lambda: f'"base": {{\n        "txid": {txid},' in (path / ".litereplica").read_text())

    try:
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "ready\n"
        fd = os.open(path / "app.db", os.O_RDONLY)
        try:
            assert os.pread(fd, PAGE_SIZE, 8 * PAGE_SIZE) == page(9, 1)
            publish(root, 2, list(range(9, 101)), commit=100)
            wait_for(2)
            publish(root, 3, [9, 100], commit=100)
            wait_for(3)
            content = os.pread(fd, 101 * PAGE_SIZE, 0)
        finally:
            os.close(fd)
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        if mountpoints.mount_at(path) is not None:
            mountpoints.unmount(path, lazy=True)
    assert len(content) == 100 * PAGE_SIZE
    for pgno in range(9, 101):
        assert content[(pgno - 1) * PAGE_SIZE :][:PAGE_SIZE] == page(pgno, 3 if pgno in (9, 100) else 2)
