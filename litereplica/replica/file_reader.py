"""Reads bytes of a file that locations point into, and checks that they are of that file and not damaged.

Equal etags show that two answers are of one object, but a new etag does not show that the content is new: that of a
large `file://` object changes when its time is set, as Litestream does after renaming it. A file is identified by the
checksum in its trailer. So for an unknown etag the trailer is read, once, in one small request.

What is read is checked as far as it can be. A small file is read whole, whatever is wanted of it. Frames of a large one
are compared with the sums beside it, if there are any; while these are damaged, a file that is not too large is read
whole as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from litereplica.concurrent import gather
from litereplica.errors import FileVanished, FormatError, LTXError, NotFound
from litereplica.format.decoder import decode_file
from litereplica.format.ltx import TRAILER_SIZE, decode_trailer
from litereplica.ltxstore.store import WHOLE_FILE_LIMIT, LTXStore
from litereplica.replica.file_table import FileTable, SourceFile
from litereplica.replica.read_plan import Block, Decoded, decode_block
from litereplica.storage.base import Blob, ByteRange, Suffix

WHOLE_IF_DAMAGED_LIMIT = 1024 * 1024
"""Bytes of a file that is read whole as long as its frame checksums are damaged: as many as one block may have."""

FrameSumsOrNone: TypeAlias = list[int | None] | None
"""The sums of some frames, those that are known; None: the file has none."""

Runner: TypeAlias = Callable[[Callable[[], Decoded]], Awaitable[Decoded]]
"""Runs decoding, in a worker thread if the block is large."""


async def read_source(store: LTXStore, files: FileTable, file_id: int, span: ByteRange) -> Blob:
    """Return these bytes of the file that `file_id` stands for; they themselves are not checked.

    Raises `FileVanished` if it was deleted or replaced, and what the store raises.
    """
    file = _file(store, files, file_id)
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


async def read_with_sums(
    store: LTXStore, files: FileTable, file_id: int, span: ByteRange, pgnos: NDArray[np.uint32]
) -> tuple[bytes, FrameSumsOrNone]:
    """Return bytes of a file, and the sums of the frames of these pages in the order asked; both are read at once.

    Raises as `read_source`, and `DamagedFile` if the sums show that the file's header or index is damaged.
    """
    file = _file(store, files, file_id)
    if file.sums is None:
        return (await read_source(store, files, file_id, span)).data, None
    data = b""
    sums: FrameSumsOrNone = None
    beside = file.sums

    async def read() -> None:
        nonlocal data
        data = (await read_source(store, files, file_id, span)).data

    async def load() -> None:
        nonlocal sums
        with store.blame(file.info):
            sums = await files.frame_sums.of(store.storage, beside, pgnos)

    await gather([read, load])
    return data, sums


async def read_block(store: LTXStore, files: FileTable, block: Block, *, page_size: int, run: Runner) -> Decoded:
    """Return the pages of a block, read once more if some are damaged: it may have happened in transit.

    Raises as `read_source`.
    """
    decoded = await _read_once(store, files, block, page_size, run)
    return await _read_once(store, files, block, page_size, run) if decoded[2] else decoded


async def _read_once(store: LTXStore, files: FileTable, block: Block, page_size: int, run: Runner) -> Decoded:
    file = _file(store, files, block.file_id)
    if file.info.size > WHOLE_FILE_LIMIT:
        span = ByteRange(block.start, block.stop)
        data, sums = await read_with_sums(store, files, block.file_id, span, block.pgnos)
        are_damaged = file.sums is not None and file.sums.is_damaged
        if not are_damaged or file.info.size > WHOLE_IF_DAMAGED_LIMIT:
            return await run(partial(decode_block, block, data, page_size, sums))
    blob = await read_source(store, files, block.file_id, ByteRange(0, file.info.size))
    return await run(partial(_decode_whole, file, blob.data, block, page_size))


def _decode_whole(file: SourceFile, data: bytes, block: Block, page_size: int) -> Decoded:
    """Return the pages of a block, from the bytes of the whole file: all of them, or none."""
    try:
        if decode_file(data).file_checksum != file.checksum:
            raise LTXError("the file has another checksum than it had")
    except LTXError as exc:
        return [], [], [(pgno, exc) for pgno in block.pgnos.tolist()]
    return decode_block(block, data[block.start : block.stop], page_size)


def _file(store: LTXStore, files: FileTable, file_id: int) -> SourceFile:
    file = files.get(file_id)
    if file is None:
        raise FileVanished(f"file {file_id} is no longer part of {store.url}")
    return file


def _is_trailer_of(file: SourceFile, data: bytes) -> bool:
    try:
        return decode_trailer(data) == file.checksum
    except FormatError:
        return False
