"""Where a restored database came from, kept in an extended attribute of its file.

A writer that starts beside a restored database must know whose history it continues. The attribute belongs to the
inode: it goes with the file when that is renamed, and a copy or another file in its place does not have it. A file
system without extended attributes keeps none; then the writer compares the database with the replica.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from litereplica.errors import DamagedFile, StorageError
from litereplica.ltxstore.store import LTXStore
from litereplica.types import TXID, FileInfo

ATTRIBUTE = "user.litereplica.restored"
MAX_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Provenance:
    """The replica and TXID that were restored.

    `lineage` is the node id of the newest file of the plan (0: unknown), `checksum` that of the level 0 file that ends
    at the TXID (0: none was read).
    """

    url: str
    txid: TXID
    lineage: int
    checksum: int


async def provenance_of(store: LTXStore, txid: TXID, node_id: int) -> Provenance:
    """Return the provenance of a database at `txid`, made there by a file with this node id.

    Without a node id the checksum of the level 0 file is read, if there is one: one small request.
    """
    checksum = 0
    if node_id == 0:
        with suppress(StorageError, DamagedFile):
            checksum = await store.read_checksum(FileInfo(0, txid, txid, 0))
    return Provenance(store.url, txid, node_id, checksum)


def write_provenance(path: Path, provenance: Provenance) -> None:
    """Note where the file came from, if its file system can. Blocks."""
    value = json.dumps(asdict(provenance)).encode()
    if len(value) <= MAX_BYTES:
        with suppress(OSError):
            os.setxattr(path, ATTRIBUTE, value)


def read_provenance(path: Path) -> Provenance | None:
    """Return what `write_provenance` noted, or None. Blocks."""
    try:
        fields = json.loads(os.getxattr(path, ATTRIBUTE))
        return Provenance(str(fields["url"]), int(fields["txid"]), int(fields["lineage"]), int(fields["checksum"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
