"""Where a restored database came from, kept in an extended attribute of its file.

A writer that starts beside a restored database must know whose history it continues. The attribute belongs to the
inode: it goes with the file when that is renamed, and a copy or another file in its place does not have it. A file
system without extended attributes keeps none; then the writer compares the database with the replica.

A file that is the restored state byte for byte is marked by its modification time, which is set to a whole second in
the past and noted: every later write gives it another one. While it has that time, nobody needs to read the replica to
know what its pages are there.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from litereplica.errors import DamagedFile, StorageError
from litereplica.ltxstore.store import LTXStore
from litereplica.types import TXID, FileInfo

ATTRIBUTE = "user.litereplica.restored"
MAX_BYTES = 4096
SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Provenance:
    """The replica and TXID that were restored.

    `lineage` is the node id of the newest file of the plan (0: unknown), `checksum` that of the level 0 file that ends
    at the TXID (0: none was read). `modified_ns` is the modification time that the file has while it is that state byte
    for byte (0: it is not).
    """

    url: str
    txid: TXID
    lineage: int
    checksum: int
    modified_ns: int = 0

    def is_untouched(self, path: Path) -> bool:
        """True if nobody has written to the file at `path` since it was restored. Blocks."""
        return self.modified_ns != 0 and path.stat().st_mtime_ns == self.modified_ns


async def provenance_of(store: LTXStore, txid: TXID, node_id: int, *, checked: bool = False) -> Provenance:
    """Return the provenance of a database at `txid`, made there by a file with this node id.

    If it is to be `checked`, or there is no node id, the checksum of the level 0 file is read, if there is one: one
    small request.
    """
    checksum = 0
    if checked or node_id == 0:
        with suppress(StorageError, DamagedFile):
            checksum = await store.read_checksum(FileInfo(0, txid, txid, 0))
    return Provenance(store.url, txid, node_id, checksum)


def write_provenance(path: Path, provenance: Provenance, *, is_exact: bool = False) -> None:
    """Note where the file came from, if its file system can. Blocks.

    `is_exact`: the file is that state byte for byte. Then its modification time is set.
    """
    with suppress(OSError):
        if is_exact:
            status = path.stat()
            modified_ns = (status.st_mtime_ns // SECOND_NS - 1) * SECOND_NS
            os.utime(path, ns=(status.st_atime_ns, modified_ns))
            provenance = replace(provenance, modified_ns=modified_ns)
        value = json.dumps(asdict(provenance)).encode()
        if len(value) <= MAX_BYTES:
            os.setxattr(path, ATTRIBUTE, value)


def read_provenance(path: Path) -> Provenance | None:
    """Return what `write_provenance` noted, or None. Blocks."""
    try:
        fields = json.loads(os.getxattr(path, ATTRIBUTE))
        lineage, checksum, modified_ns = (int(fields.get(each, 0)) for each in ("lineage", "checksum", "modified_ns"))
        return Provenance(str(fields["url"]), int(fields["txid"]), lineage, checksum, modified_ns)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
