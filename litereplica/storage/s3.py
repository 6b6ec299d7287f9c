"""Objects in an S3 bucket, through boto3 in threads.

A limiter of the size of boto3's connection pool bounds the concurrent requests. botocore's own retries are off: each
operation is one request (a few for a listing, a large deletion and an upload in parts). A cancelled operation returns
at once; its request continues in its thread, and may still take effect.

Listings are sorted here, since some stores order them by directory and not by byte (SeaweedFS: `a/b` before `a-b`).
Only `start_after` relies on the store's order, which is the same everywhere among the keys of one directory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from litereplica.errors import NotFound, NotSupported, PreconditionFailed
from litereplica.storage import s3_errors, s3_upload
from litereplica.storage.base import Blob, Body, DirectoryListing, ObjectInfo, Range, Storage, listed
from litereplica.storage.keys import validate_directory, validate_key, validate_prefix
from litereplica.storage.pace import ListingPace
from litereplica.storage.ranges import is_empty, validate_range
from litereplica.storage.s3_body import Reply, range_header, read_blob
from litereplica.storage.s3_client import MAX_CONNECTIONS, connect, given_time_ms, send_content_md5
from litereplica.storage.s3_connection import Connection
from litereplica.storage.s3_upload import Target, upload_in_parts
from litereplica.times import format_time_nano, milliseconds

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, ObjectTypeDef

    from litereplica.storage.credentials import Credentials
    from litereplica.storage.url import ReplicaURL

log = logging.getLogger(__name__)

T = TypeVar("T")

TIMESTAMP_METADATA = "litestream-timestamp"
"""The metadata in which Litestream stores an object's time: RFC 3339 in UTC, with nanoseconds."""
DELETE_BATCH = 1000
"""S3's limit for one request."""


class S3Storage(Storage):
    """Objects of a bucket below the URL's path. Nothing is imported or connected before the first request."""

    def __init__(self, url: ReplicaURL, credentials: Credentials | None = None) -> None:
        self._url = url
        self._base = url.path + "/" if url.path else ""
        self._limiter = trio.CapacityLimiter(MAX_CONNECTIONS)
        self._connection = Connection(partial(_connect, url, credentials))
        self._deletes_singly = False  # Google's interoperability API has no DeleteObjects

    @property
    def url(self) -> str:
        return str(self._url)

    async def get(self, key: str, range: Range | None = None) -> Blob:
        where = self._where(key)
        validate_range(range)
        if range is not None and is_empty(range):
            return await self._get_nothing(key)
        header: dict[str, Any] = {} if range is None else {"Range": range_header(range)}

        def fetch(client: S3Client) -> Blob | None:
            from botocore.exceptions import ClientError

            try:
                answer = client.get_object(**where, **header)
            except ClientError as exc:
                if _status(exc) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    return None
                raise
            return _blob(client, where, answer, range)

        blob = await self._run(f"read {key}", fetch, key=key)
        return await self._get_nothing(key) if blob is None else blob

    async def put(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        return await self._put(key, body, modified_ms, {})

    async def put_if_absent(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        return await self._put(key, body, modified_ms, {"IfNoneMatch": "*"})

    async def put_if_match(self, key: str, body: Body, etag: str, *, modified_ms: int | None = None) -> str:
        try:
            return await self._put(key, body, modified_ms, {"IfMatch": etag})
        except NotFound as exc:
            raise PreconditionFailed(exc.message, key=key) from exc

    async def head(self, key: str) -> ObjectInfo:
        where = self._where(key)
        answer = await self._run(f"read {key}", lambda client: client.head_object(**where), key=key)
        given_ms = given_time_ms(answer.get("Metadata", {}).get(TIMESTAMP_METADATA, ""))
        return ObjectInfo(
            key=key,
            size=answer["ContentLength"],
            modified_ms=given_ms or _modified_ms(answer),
            etag=answer.get("ETag", ""),
        )

    async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
        validate_prefix(prefix)
        request: dict[str, Any] = {"Bucket": self._url.bucket, "Prefix": self._base + prefix}
        if start_after:
            request["StartAfter"] = self._base + start_after

        def fetch(client: S3Client) -> list[ObjectInfo]:
            found: list[ObjectInfo] = []
            pace = ListingPace(self.url)
            for page in client.get_paginator("list_objects_v2").paginate(**request):
                trio.from_thread.check_cancelled()
                entries = page.get("Contents", ())
                pace.received(len(entries))
                found += [self._info(entry) for entry in entries if entry["Key"].startswith(self._base)]
            return found

        return listed(prefix, start_after, await self._run(f"list {prefix or 'objects'}", fetch, key=prefix))

    async def list_directory(self, prefix: str) -> DirectoryListing:
        validate_directory(prefix)
        request: dict[str, Any] = {"Bucket": self._url.bucket, "Prefix": self._base + prefix, "Delimiter": "/"}

        def fetch(client: S3Client) -> DirectoryListing:
            prefixes: list[str] = []
            objects: list[ObjectInfo] = []
            pace = ListingPace(self.url)
            for page in client.get_paginator("list_objects_v2").paginate(**request):
                trio.from_thread.check_cancelled()
                shown = [each["Prefix"].removeprefix(self._base) for each in page.get("CommonPrefixes", ())]
                pace.received(len(shown) + len(page.get("Contents", ())))
                prefixes += shown
                objects += [self._info(entry) for entry in page.get("Contents", ())]
            return DirectoryListing.of(prefix, prefixes, objects)

        return await self._run(f"list {prefix or 'objects'}", fetch, key=prefix)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            validate_key(key)
        for start in range(0, len(keys), DELETE_BATCH):
            await self._delete_batch(keys[start : start + DELETE_BATCH])

    async def delete_if_match(self, key: str, etag: str) -> None:
        where = self._where(key)
        try:
            await self._run(
                f"delete {key}",
                lambda client: client.delete_object(**where, IfMatch=etag),
                key=key,
                conditional=True,
            )
        except NotFound as exc:
            raise PreconditionFailed(exc.message, key=key) from exc

    async def aclose(self) -> None:
        client = self._connection.take()
        if client is not None:
            client.close()  # before the checkpoint, which raises if the caller is cancelled
        await trio.lowlevel.checkpoint()

    async def _get_nothing(self, key: str) -> Blob:
        info = await self.head(key)
        return Blob(data=b"", size=info.size, etag=info.etag)

    async def _put(self, key: str, body: Body, modified_ms: int | None, condition: dict[str, Any]) -> str:
        metadata = {} if modified_ms is None else {TIMESTAMP_METADATA: format_time_nano(modified_ms)}
        options = self._url.options
        target = Target(
            where=self._where(key),
            metadata=metadata,
            condition=condition,
            part_bytes=options.part_bytes or s3_upload.PART_BYTES,
            concurrency=options.concurrency or s3_upload.PARALLEL_PARTS,
        )

        async def run(doing: str, action: Callable[[S3Client], T]) -> T:
            return await self._run(f"{doing} {key}", action, key=key, conditional=bool(condition))

        def send(client: S3Client) -> str | int:
            size = body.stat().st_size if isinstance(body, Path) else len(body)
            if isinstance(body, Path) and size >= s3_upload.MULTIPART_BYTES:
                return size
            data = body.read_bytes() if isinstance(body, Path) else body
            return client.put_object(**target.where, Body=data, Metadata=metadata, **condition).get("ETag", "")

        sent = await run("write", send)
        if isinstance(sent, str):
            return sent
        assert isinstance(body, Path)
        return await upload_in_parts(body, sent, target, run)

    async def _delete_batch(self, keys: Sequence[str]) -> None:
        if self._deletes_singly:
            await self._delete_singly(keys)
            return
        batch = {"Objects": [{"Key": self._base + key} for key in keys], "Quiet": True}
        try:
            answer = await self._run(
                f"delete {keys[0]} and {len(keys) - 1} more" if len(keys) > 1 else f"delete {keys[0]}",
                lambda client: client.delete_objects(Bucket=self._url.bucket, Delete=batch),  # type: ignore[arg-type] # a plain dict
                key=keys[0],
            )
        except NotSupported:
            log.info("%s: the store does not support DeleteObjects: deleting objects one by one", self.url)
            self._deletes_singly = True
            await self._delete_singly(keys)
            return
        for failed in answer.get("Errors", ()):
            key = failed.get("Key", "").removeprefix(self._base)
            failure = s3_errors.Failure(f"delete {key}", key=key, url=self.url)
            error = s3_errors.of_code(failed.get("Code", ""), 0, failed.get("Message", ""), failure)
            if not isinstance(error, NotFound):
                raise error

    async def _delete_singly(self, keys: Sequence[str]) -> None:
        for key in keys:
            where = self._where(key)
            with suppress(NotFound):
                await self._run(f"delete {key}", partial(_delete_one, where), key=key)

    def _where(self, key: str) -> dict[str, Any]:
        validate_key(key)
        return {"Bucket": self._url.bucket, "Key": self._base + key}

    def _info(self, entry: ObjectTypeDef) -> ObjectInfo:
        return ObjectInfo(
            key=entry["Key"].removeprefix(self._base),
            size=entry["Size"],
            modified_ms=_modified_ms(entry),
            etag=entry.get("ETag", ""),
        )

    async def _run(self, doing: str, action: Callable[[S3Client], T], *, key: str, conditional: bool = False) -> T:
        """Run a function of the client in a thread, and translate its errors. `doing` is for their messages."""

        def translating() -> T:
            client = None
            try:
                client = self._connection.client()
                return action(client)
            except Exception as exc:
                if client is not None and self._is_worth_another_try(exc, client):
                    return translating()
                failure = s3_errors.Failure(doing, key=key, url=self.url, conditional=conditional)
                error = s3_errors.translated(exc, failure)
                if error is None or error is exc:
                    raise
                raise error from exc

        return await trio.to_thread.run_sync(translating, limiter=self._limiter, abandon_on_cancel=True)

    def _is_worth_another_try(self, exc: Exception, client: S3Client) -> bool:
        """True if a retry may succeed, with newer credentials or with Content-MD5."""
        from botocore.exceptions import ClientError

        if not isinstance(exc, ClientError):
            return False
        error = exc.response.get("Error", {})
        if s3_errors.refuses_credentials(error.get("Code", "")):
            return self._connection.renew(client)
        return s3_errors.wants_content_md5(error.get("Message", "")) and send_content_md5(client)


def _connect(url: ReplicaURL, credentials: Credentials | None) -> S3Client:
    from litereplica.storage.s3_paced import pace_answers  # imports botocore

    pace_answers()
    return connect(url, credentials)


def _delete_one(where: dict[str, Any], client: S3Client) -> object:
    return client.delete_object(**where)


def _status(exc: ClientError) -> int:
    return exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _blob(client: S3Client, where: dict[str, Any], answer: GetObjectOutputTypeDef, range: Range | None) -> Blob:
    announced = answer.get("ContentLength")
    # boto's own wrapper blocks until it has all bytes of a read, however slowly they arrive.
    stream: Any = answer["Body"]._raw_stream  # type: ignore[attr-defined]
    reply = Reply(announced, answer.get("ContentRange", ""), answer.get("ETag", ""), stream.read1)
    try:
        blob, received = read_blob(reply, range, lambda: client.head_object(**where)["ContentLength"])
    except BaseException:
        stream.close()  # the connection has bytes left
        raise
    if received == announced or announced is None:
        stream.release_conn()
    else:
        stream.close()
    return blob


def _modified_ms(answer: Any) -> int:
    """The time of an object, or of an entry of a listing; 0 if the store gives none."""
    modified: datetime | None = answer.get("LastModified")
    return 0 if modified is None else milliseconds(modified)
