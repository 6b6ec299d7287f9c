"""The catalog of a replica that is known to have files.

A store that shows none of them, at any level, has not lost one file: its directory was unmounted, or its bucket
emptied. That is an outage, and ends when files are there again. Taken for missing files, it would make reads fail as if
the database were damaged, and the position count as up to date.
"""

from __future__ import annotations

from collections.abc import Sequence

from litereplica.errors import TransientStorageError
from litereplica.ltxstore.catalog import Catalog
from litereplica.types import TXID, FileInfo


class KnownCatalog(Catalog):
    """A catalog that does not take the absence of everything for an answer."""

    async def list_all(self, *, after: TXID = 0, in_order: bool = False) -> Sequence[FileInfo]:
        """Return the files as `Catalog.list_all`. Raises `TransientStorageError` if the replica has none at all."""
        files = await super().list_all(after=after, in_order=in_order)
        if not files and not (after and await super().list_all(in_order=in_order)):
            raise TransientStorageError(
                f"{self.store.url} has no LTX file at all any more",
                hint="check that the store is mounted; if the replica was deleted, unmount it here",
            )
        return files
