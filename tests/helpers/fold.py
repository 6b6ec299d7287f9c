"""A replica's files applied one after the other: the plain meaning of a replica, to compare everything with."""

from __future__ import annotations

from litereplica.ltxstore.plan import plan_restore
from litereplica.ltxstore.store import LTXStore
from litereplica.testing.ltx_files import read_file


async def fold(store: LTXStore, *, target: int | None = None) -> bytes:
    """The database's bytes at a TXID, or at the newest."""
    pages: dict[int, bytes] = {}
    commit = page_size = 0
    for info in plan_restore(await store.list_levels(), target=target):
        file = await read_file(store, info)
        pages.update(zip(file.index.pgno.tolist(), file.pages, strict=True))
        commit, page_size = file.header.commit, file.header.page_size
        pages = {pgno: page for pgno, page in pages.items() if pgno <= commit}
    return b"".join(pages.get(pgno, bytes(page_size)) for pgno in range(1, commit + 1))
