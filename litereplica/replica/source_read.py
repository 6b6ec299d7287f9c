"""Reading bytes of a file that locations point into, and knowing that they are of that file.

An etag tells whether two answers are of one object, not what is in it: that of a large `file://` object changes when
somebody sets its time, as Litestream does after giving it its name. What identifies a file is the checksum in its
trailer. So an etag that we do not know is looked into, once, at the price of one small request.
"""

from __future__ import annotations

from litereplica.errors import FileVanished, FormatError, NotFound
from litereplica.format.ltx import TRAILER_SIZE, decode_trailer
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.files import FileTable, SourceFile
from litereplica.storage.base import Blob, ByteRange, Suffix


async def read_source(store: LTXStore, files: FileTable, file_id: int, span: ByteRange) -> Blob:
    """These bytes of the file that `file_id` stands for; they themselves are not checked.

    Raises `FileVanished` when it has gone or another one has its name, and what the store raises.
    """
    file = files.get(file_id)
    if file is None:
        raise FileVanished(f"file {file_id} is no longer part of {store.url}")
    try:
        blob = await store.get(file.info, span)
        known = files.is_same_object(file_id, blob)
        if not known and blob.size == file.info.size:
            tail = await store.get(file.info, Suffix(TRAILER_SIZE))
            known = (tail.size, tail.etag) == (blob.size, blob.etag) and _is_trailer_of(file, tail.data)
            if known:
                files.note_etag(file_id, blob.etag)
    except NotFound as exc:
        raise FileVanished(exc.message, key=exc.key) from exc
    if not known:
        key = store.key(file.info)
        raise FileVanished(f"{key} has been replaced", key=key)
    return blob


def _is_trailer_of(file: SourceFile, data: bytes) -> bool:
    try:
        return decode_trailer(data) == file.checksum
    except FormatError:
        return False
