"""Uploads a large local file to S3 in parts.

A few parts are sent concurrently, so memory is bounded by `PARALLEL_PARTS` × the size of a part, whatever the size of
the file. A part whose request fails transiently is sent again on its own, which its number makes safe. The object
appears with the completion request, which carries the condition. An upload that fails or is cancelled is aborted, so
that the store keeps no parts; and once more after the requests in flight have ended, since a part that arrives after
the abort would remain.
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
"""Smaller files are sent in one request, which is then no larger than a part."""
PART_BYTES = 16 << 20
"""At 100 MB/s a part takes 160 ms, so that round trips do not matter."""
MAX_PARTS = 10_000
"""S3's limit. Files beyond 156 GiB get larger parts."""
PARALLEL_PARTS = 4
"""64 MiB of memory at most; enough to fill a fast network."""
PART_ATTEMPTS = 6
PART_RETRY_S = 0.2
PART_RETRY_MAX_S = 5.0
"""Up to 6 s in total, for a store that restarts or throttles. Delays are random, up to a limit that doubles."""
IN_FLIGHT_POLL_S = 0.02
ABORT_TIMEOUT_S = 5.0
"""A shutdown waits this long for the abort; the bucket's lifecycle rule deletes parts that remain."""


class Run(Protocol):
    """Runs a function of the client in a thread. `doing` is a verb, for error messages."""

    def __call__(self, doing: str, action: Callable[[S3Client], T]) -> Awaitable[T]:
        """Return the result of `action`. Raises the errors of the storage contract."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """The object to write: `where` is its bucket and key; `condition` the parameters that make the put conditional.

    `part_bytes` is the size of a part, and `concurrency` how many are sent at a time.
    """

    where: dict[str, Any]
    metadata: dict[str, str]
    condition: dict[str, Any]
    part_bytes: int = PART_BYTES
    concurrency: int = PARALLEL_PARTS


def part_size(size: int, wanted: int = PART_BYTES) -> int:
    """Bytes of each part except the last, for a file of `size` bytes: `wanted`, or as many MiB as `MAX_PARTS` needs."""
    mebibyte = 1 << 20
    smallest = -(-size // MAX_PARTS)
    return max(wanted, -(-smallest // mebibyte) * mebibyte)


class _InFlight:
    """Counts the requests that send parts: after a cancellation, they continue in their threads."""

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
        while not self.none:  # noqa: ASYNC110 - the threads cannot set trio's events after a cancellation
            await trio.sleep(IN_FLIGHT_POLL_S)


async def upload_in_parts(path: Path, size: int, target: Target, run: Run) -> str:
    """Upload `size` bytes of a file, and return the etag. Raises the errors of `run`."""
    in_flight = _InFlight()
    started = await run(
        "begin to write",
        lambda client: client.create_multipart_upload(**target.where, Metadata=target.metadata),
    )
    upload = target.where | {"UploadId": started["UploadId"]}
    try:
        parts = await _upload_parts(path, size, target, upload, run, in_flight)
        done = await run(
            "write",
            lambda client: client.complete_multipart_upload(
                **upload, MultipartUpload={"Parts": parts}, **target.condition
            ),
        )
    except BaseException:
        await _abort(upload, run, in_flight)
        raise
    return done["ETag"]


async def _upload_parts(
    path: Path, size: int, target: Target, upload: dict[str, Any], run: Run, in_flight: _InFlight
) -> list[CompletedPartTypeDef]:
    length = part_size(size, target.part_bytes)
    offsets = iter(range(0, size, length))
    parts: list[CompletedPartTypeDef] = []
    failures: list[StorageError] = []

    async def worker(cancel: trio.CancelScope) -> None:
        for offset in offsets:
            number = offset // length + 1
            expected = min(length, size - offset)
            try:
                answer = await _with_retries(run, _part_upload(path, offset, expected, upload, number, in_flight))
            except StorageError as exc:
                failures.append(exc)
                cancel.cancel()
                return
            parts.append({"PartNumber": number, "ETag": answer})

    async with trio.open_nursery() as nursery:
        for _ in range(target.concurrency):
            nursery.start_soon(worker, nursery.cancel_scope)
    if failures:
        raise failures[0]
    return sorted(parts, key=lambda part: part["PartNumber"])


async def _with_retries(run: Run, send: Callable[[S3Client], str]) -> str:
    """Send a part, and send it again after transient errors."""
    limit_s = PART_RETRY_S
    for _ in range(PART_ATTEMPTS - 1):
        try:
            return await run("write a part of", send)
        except TransientStorageError:
            await trio.sleep(random.uniform(0, limit_s))
            limit_s = min(2 * limit_s, PART_RETRY_MAX_S)
    return await run("write a part of", send)


def _part_upload(
    path: Path, offset: int, length: int, upload: dict[str, Any], number: int, in_flight: _InFlight
) -> Callable[[S3Client], str]:
    def send(client: S3Client) -> str:
        with in_flight.one():
            return send_part(client)

    def send_part(client: S3Client) -> str:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        if len(data) != length:
            raise StorageError(f"{path} changed while it was uploaded", hint="start again")
        return client.upload_part(**upload, PartNumber=number, Body=data)["ETag"]

    return send


async def _abort(upload: dict[str, Any], run: Run, in_flight: _InFlight) -> None:
    def abort(client: S3Client) -> object:
        return client.abort_multipart_upload(**upload)

    with trio.move_on_after(ABORT_TIMEOUT_S, shield=True):
        for _ in range(2):
            with suppress(StorageError):  # the error that led here is raised instead
                await run("abort writing", abort)
            if in_flight.none:
                return
            await in_flight.wait_until_none()
