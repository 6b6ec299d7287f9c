"""A `file://` replica, followed file by file as an application's history is: what each TXID's database is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from litereplica.format.decoder import decode_file
from litereplica.format.names import Layout, file_key
from litereplica.types import TXID


class Follower:
    """The replica's database, file after file as they appear."""

    def __init__(self, root: Path) -> None:
        self.txid: TXID = 0
        self.digests: list[str] = []  # of the database at each TXID, from 1 on
        self.may_have_more_pages = False
        """Pages beyond the size that the database's header tells do not count."""
        self._root = root
        self._files: list[str] = []
        self._pages: dict[int, bytes] = {}

    def advance(self) -> bool:
        """Apply the next file, if there is one."""
        try:
            data = self._path(self.txid + 1).read_bytes()
        except FileNotFoundError:
            return False
        file = decode_file(data)
        self.txid += 1
        self._files.append(hashlib.sha256(data).hexdigest())
        commit, page_size = file.header.commit, file.header.page_size
        self._pages |= dict(zip(file.index.pgno.tolist(), file.pages, strict=True))
        self._pages = {pgno: page for pgno, page in self._pages.items() if pgno <= commit}
        assert len(self._pages) == commit, "a page is in no file"
        content = hashlib.sha256()
        if self.may_have_more_pages:
            commit = min(commit, int.from_bytes(self._pages[1][28:32], "big"))
        for pgno in range(1, commit + 1):
            assert len(self._pages[pgno]) == page_size
            content.update(self._pages[pgno])
        self.digests.append(content.hexdigest())
        return True

    def check_files(self) -> None:
        """All are there as they were, and no other."""
        names = {path.name for path in self._path(1).parent.glob("*.ltx")} if self._files else set()
        assert names == {self._path(txid).name for txid in range(1, self.txid + 1)}
        for txid, digest in enumerate(self._files, 1):
            assert hashlib.sha256(self._path(txid).read_bytes()).hexdigest() == digest, f"TXID {txid} has changed"

    def check_digests(self, committed: Sequence[str]) -> None:
        """Each TXID is one of these states of the application, which are in their order, none older than the last."""
        at = 0
        for txid, digest in enumerate(self.digests, 1):
            assert digest in committed[at:], f"TXID {txid} was never committed, or before its predecessor"
            at = committed.index(digest, at)

    def _path(self, txid: TXID) -> Path:
        return self._root / file_key(Layout.FILE, 0, txid, txid)
