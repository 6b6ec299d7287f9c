"""A large database takes little memory: 16 bytes a page, and not much more while it is opened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from litereplica.format import ltx
from litereplica.format.ltx import Header, PageIndex
from litereplica.format.names import SNAPSHOT_LEVEL, Layout, file_key

PAGES = 2_000_000
PAGE_SIZE = 4096
LOCATION_SIZE = 16

PROGRAM = """
import json, sys
from pathlib import Path
import trio
from litereplica.fuse import mount  # what a mount has in memory in any case
from litereplica.ltxstore.store import open_ltx_store
from litereplica.replica.malloc_tuning import tune_allocator
from litereplica.replica.database import open_replica

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

async def main(url, cache):
    figures = {"imported": memory("VmRSS")}
    store = open_ltx_store(url)
    async with open_replica(store, cache_dir=Path(cache)) as replica:
        figures |= {"commit": replica.snapshot.commit, "opening": memory("VmHWM"), "open": memory("VmRSS")}
        await replica.heal()  # another map beside the one that readers have
        figures["healing"] = memory("VmHWM")
    await store.aclose()
    print(json.dumps(figures))

tune_allocator()
trio.run(main, *sys.argv[1:])
"""


def write_snapshot_without_frames(root: Path, pages: int) -> None:
    """A file whose header, index and trailer are right, with holes in the place of its frames."""
    header = Header(page_size=PAGE_SIZE, commit=pages, min_txid=1, max_txid=1, timestamp_ms=1)
    pgno = np.arange(1, pages + 1, dtype=np.uint32)
    pgno = pgno[pgno != header.lock_pgno]
    size = np.random.default_rng(1).integers(600, 3000, len(pgno)).astype(np.uint32)
    offset = np.cumsum(size, dtype=np.uint64) - size + np.uint64(ltx.HEADER_SIZE)
    index = PageIndex(pgno, offset, size)
    path = root / file_key(Layout.FILE, SNAPSHOT_LEVEL, 1, 1)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.write(header.encode())
        file.seek(index.frames_end)
        file.write(ltx.END_OF_FRAMES + ltx.encode_page_index(index) + ltx.encode_trailer(1 << 63))


@pytest.mark.slow
def test_two_million_pages_take_16_bytes_each_and_150_mb_in_all_at_any_moment(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    write_snapshot_without_frames(tmp_path / "replica", PAGES)
    command = [sys.executable, "-c", PROGRAM, f"file://{tmp_path}/replica", str(cache)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(run.stdout)
    assert figures["commit"] == PAGES
    assert figures["opening"] < 150e6
    assert figures["healing"] < figures["opening"] + LOCATION_SIZE * PAGES + 10e6
    assert figures["open"] - figures["imported"] < LOCATION_SIZE * PAGES + 20e6
