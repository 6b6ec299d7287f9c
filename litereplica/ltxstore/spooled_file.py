"""Collects a new LTX file on this machine, and publishes it.

`SpooledFile` collects the pieces of the file, and computes its frame checksums at the same time. `publish` puts it into
the store: the frame checksums of a large file first, so that a reader that finds the file finds them too.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import trio

from litereplica.errors import NotFound, PreconditionFailed
from litereplica.format.frame_checksums import FrameChecksumsEncoder
from litereplica.ltxstore.store import WHOLE_FILE_LIMIT, LTXStore
from litereplica.storage.base import Body, Suffix
from litereplica.types import FileInfo

MEMORY_BYTES = 4 << 20
"""Files up to this size are kept in memory; larger ones are written to disk."""


class SpooledFile:
    """Collects the pieces of one file: in memory while small, else in a file without a name on the disk of `directory`.

    `size` is in bytes; `directory` None is the system's directory for temporary files. `write` the pieces, then
    `finish`; `discard` when the file is no longer needed. Methods block and raise `OSError`.
    """

    def __init__(self, directory: Path | None, *, memory_bytes: int | None = None) -> None:
        self.size = 0
        self._directory = directory
        self._memory_bytes = MEMORY_BYTES if memory_bytes is None else memory_bytes
        self._pieces: list[bytes] = []
        self._pieces_size = 0
        self._file: BinaryIO | None = None
        self._encoder = FrameChecksumsEncoder()
        self._frame_checksums = b""

    def write(self, pieces: Iterable[bytes]) -> None:
        """Append the header, frames and the end of the file, one piece each."""
        for piece in pieces:
            self._encoder.feed(piece)
            self._pieces.append(piece)
            self._pieces_size += len(piece)
            if self._pieces_size > self._memory_bytes:
                self._spill()

    def finish(self) -> None:
        """Complete the file: write what is left to disk, and compute the frame checksums of a large file."""
        if self._file is not None:
            self._spill()
            self._file.flush()
        self.size += self._pieces_size
        if self.size > WHOLE_FILE_LIMIT:
            self._frame_checksums = self._encoder.finish()

    @property
    def body(self) -> Body:
        """The finished file: bytes, or a path of the file without a name, as long as this object has it."""
        return b"".join(self._pieces) if self._file is None else _path_of(self._file)

    @property
    def frame_checksums(self) -> bytes:
        """The frame checksums of a large file, encoded; empty for a small one."""
        return self._frame_checksums

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """Yield the bytes of the finished file, in chunks of this size if it is on disk. Runs in a thread of trio."""
        if self._file is None:
            yield b"".join(self._pieces)
            return
        with _path_of(self._file).open("rb") as file:
            while chunk := file.read(chunk_bytes):
                trio.from_thread.check_cancelled()
                yield chunk

    def discard(self) -> None:
        """Remove the temporary file."""
        self._pieces = []
        if self._file is not None:
            with contextlib.suppress(OSError):  # flushing the buffer fails if the disk is full
                self._file.close()

    def _spill(self) -> None:
        """Move the pieces from memory to disk."""
        if self._file is None:
            # without a name: others may write to the directory, and a killed process leaves nothing there
            file = tempfile.TemporaryFile("wb", dir=self._directory)  # noqa: SIM115 - closed by `discard`
            self._file = cast("BinaryIO", file)
        self._file.writelines(self._pieces)
        self.size += self._pieces_size
        self._pieces, self._pieces_size = [], 0


def _path_of(file: BinaryIO) -> Path:
    return Path(f"/proc/self/fd/{file.fileno()}")


async def publish(
    store: LTXStore, info: FileInfo, file: SpooledFile, *, timestamp_ms: int, exclusive: bool = True
) -> None:
    """Put a finished file under its name, after its frame checksums if it is larger than 256 KiB.

    `timestamp_ms` is that of the header. Pass `exclusive=False` for a store that ignores conditions: then this checks
    first that the name is free. Raises `PreconditionFailed` if the name is taken, and the errors of `LTXStore.put`.
    """
    if file.frame_checksums:
        await store.put_frame_checksums(info, file.frame_checksums)
    if exclusive:
        await store.put(info, file.body, timestamp_ms=timestamp_ms)
        return
    key = store.key(info)
    with contextlib.suppress(NotFound):
        await store.get(info, Suffix(0))
        raise PreconditionFailed(f"{key} exists already", key=key)
    await store.storage.put(key, file.body, modified_ms=timestamp_ms)
