"""Uploading a large local file to S3 in parts.

A few parts are under way at once, so memory is bounded by `PARALLEL_PARTS` × the size of a part whatever the
file's size. A part that fails for a moment is sent again by itself: its number makes that harmless, and the others
need not be. The object appears at the completion, which carries the condition. An upload that fails or is
cancelled is aborted, so that the store keeps no parts; and again when the requests have ended that were under way,
since a part that arrives after the abort would stay.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import trio

from litereplica.errors import StorageError, TransientStorageError

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

T = TypeVar("T")

MULTIPART_BYTES = 16 << 20
"""Smaller files go in one request: a part is as large as that request would be."""
PART_BYTES = 16 << 20
"""At 100 MB/s a part takes 160 ms, so the round trips around it do not matter."""
MAX_PARTS = 10_000
"""S3's limit. Files beyond 156 GiB get larger parts."""
PARALLEL_PARTS = 4
"""64 MiB of memory at most; enough to fill a fast network."""
PART_ATTEMPTS = 6
PART_RETRY_S = 0.2
PART_RETRY_MAX_S = 5.0
"""Up to 6 s in all, for a store that restarts or asks to slow down. Delays are random, up to a limit that doubles."""
UNDER_WAY_LOOK_S = 0.02
ABORT_TIMEOUT_S = 5.0
"""A shutdown waits for the abort; what is left behind is for the bucket's lifecycle rule."""


class Run(Protocol):
    """Runs a function of the client in a thread: `run(what_it_does, action)`."""

    def __call__(self, doing: str, action: Callable[[S3Client], T]) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where an object goes: `Bucket` and `Key`, its metadata, and the parameters that make it conditional."""

    where: dict[str, Any]
    metadata: dict[str, str]
    condition: dict[str, Any]


def part_size(size: int) -> int:
    """Bytes of each part but the last, for a file of `size` bytes: a multiple of 1 MiB."""
    mebibyte = 1 << 20
    smallest = -(-size // MAX_PARTS)
    return max(PART_BYTES, -(-smallest // mebibyte) * mebibyte)


class _UnderWay:
    """Counts the requests that send parts: a thread goes on with its own after a cancellation."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        with self._lock:
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1

    @property
    def none(self) -> bool:
        return self._count == 0

    async def wait_until_none(self) -> None:
        while not self.none:  # noqa: ASYNC110 - the threads know nothing of events
            await trio.sleep(UNDER_WAY_LOOK_S)


async def upload_in_parts(path: Path, size: int, target: Target, run: Run) -> str:
    """Upload `size` bytes of a file; returns the etag. Errors are those of `run`."""
    under_way = _UnderWay()
    started = await run(
        "begin to write",
        lambda client: client.create_multipart_upload(**target.where, Metadata=target.metadata),
    )
    upload = target.where | {"UploadId": started["UploadId"]}
    try:
        parts = await _upload_parts(path, size, upload, run, under_way)
        done = await run(
            "write",
            lambda client: client.complete_multipart_upload(
                **upload, MultipartUpload={"Parts": parts}, **target.condition
            ),
        )
    except BaseException:
        await _abort(upload, run, under_way)
        raise
    return done["ETag"]


async def _upload_parts(
    path: Path, size: int, upload: dict[str, Any], run: Run, under_way: _UnderWay
) -> list[CompletedPartTypeDef]:
    length = part_size(size)
    offsets = iter(range(0, size, length))
    parts: list[CompletedPartTypeDef] = []
    failures: list[StorageError] = []

    async def worker(cancel: trio.CancelScope) -> None:
        for offset in offsets:
            number = offset // length + 1
            expected = min(length, size - offset)
            try:
                answer = await _persistently(run, _part_upload(path, offset, expected, upload, number, under_way))
            except StorageError as exc:
                failures.append(exc)
                cancel.cancel()
                return
            parts.append({"PartNumber": number, "ETag": answer})

    async with trio.open_nursery() as nursery:
        for _ in range(PARALLEL_PARTS):
            nursery.start_soon(worker, nursery.cancel_scope)
    if failures:
        raise failures[0]
    return sorted(parts, key=lambda part: part["PartNumber"])


async def _persistently(run: Run, send: Callable[[S3Client], str]) -> str:
    """Send a part, and again after failures that pass."""
    limit_s = PART_RETRY_S
    for _ in range(PART_ATTEMPTS - 1):
        try:
            return await run("write a part of", send)
        except TransientStorageError:
            await trio.sleep(random.uniform(0, limit_s))
            limit_s = min(2 * limit_s, PART_RETRY_MAX_S)
    return await run("write a part of", send)


def _part_upload(
    path: Path, offset: int, length: int, upload: dict[str, Any], number: int, under_way: _UnderWay
) -> Callable[[S3Client], str]:
    def send(client: S3Client) -> str:
        with under_way.one():
            return send_part(client)

    def send_part(client: S3Client) -> str:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        if len(data) != length:
            raise StorageError(f"{path} changed while it was uploaded", hint="start again")
        return client.upload_part(**upload, PartNumber=number, Body=data)["ETag"]

    return send


async def _abort(upload: dict[str, Any], run: Run, under_way: _UnderWay) -> None:
    def abort(client: S3Client) -> object:
        return client.abort_multipart_upload(**upload)

    with trio.move_on_after(ABORT_TIMEOUT_S, shield=True):
        for _ in range(2):
            with suppress(StorageError):  # the failure that led here is the one to tell of
                await run("abort writing", abort)
            if under_way.none:
                return
            await under_way.wait_until_none()
