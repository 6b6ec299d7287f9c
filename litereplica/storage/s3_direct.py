"""Objects in an S3 bucket, through requests of our own (`s3_requests.py`), and through boto3 for what is rare.

`DirectS3Storage` sends GET, HEAD, LIST and PUT itself, at a quarter to an eighth of boto3's CPU time, and without
importing boto3. The backend `s3.S3Storage` (`complete`) deletes, and uploads in parts. Requests run in threads; a
cancelled one continues in its thread. Nothing is tried again here (only `wrappers.RetryStorage` does that), except for
an idle connection that turns out to be closed. `s3_connection.py` makes the client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

from litereplica.errors import NotFound, PreconditionFailed
from litereplica.storage import s3_client, s3_errors, s3_upload
from litereplica.storage.base import Blob, Body, DirectoryListing, ObjectInfo, Range, Storage, listed
from litereplica.storage.keys import (
    validate_directory,
    validate_key,
    validate_prefix,
)
from litereplica.storage.pace import ListingPace
from litereplica.storage.ranges import is_empty, validate_range
from litereplica.storage.s3 import TIMESTAMP_METADATA, S3Storage
from litereplica.storage.s3_body import Reply, range_header, read_blob
from litereplica.storage.s3_client import given_time_ms
from litereplica.storage.s3_connection import Connection, connect
from litereplica.storage.s3_requests import Refusal, S3Requests
from litereplica.times import format_time_nano, milliseconds

if TYPE_CHECKING:
    from litereplica.storage.credentials import Credentials
    from litereplica.storage.paced_response import PacedResponse
    from litereplica.storage.s3_listing import Page
    from litereplica.storage.url import ReplicaURL

T = TypeVar("T")


class DirectS3Storage(Storage):
    """Objects of a bucket below the URL's path. Nothing is connected before the first request."""

    def __init__(self, url: ReplicaURL, credentials: Credentials | None = None) -> None:
        self._url = url
        self._base = url.path + "/" if url.path else ""
        self._complete = S3Storage(url, credentials)
        self._limiter = trio.CapacityLimiter(s3_client.MAX_CONNECTIONS)
        self._connection = Connection(partial(connect, url, credentials))
        self._sends_md5 = False  # buckets with Object Lock want Content-MD5

    @property
    def url(self) -> str:
        return str(self._url)

    async def get(self, key: str, range: Range | None = None) -> Blob:
        validate_key(key)
        validate_range(range)
        if range is not None and is_empty(range):
            return await self._get_nothing(key)
        span = "" if range is None else range_header(range)

        def fetch(client: S3Requests) -> Blob | None:
            def read(answer: PacedResponse) -> Blob:
                reply = Reply(answer.length, answer.getheader("content-range", ""), _etag(answer), answer.read1)
                return read_blob(reply, range, lambda: _size(client.head(self._base + key)))[0]

            try:
                return client.get(self._base + key, span, read)
            except Refusal as exc:
                if exc.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    return None
                raise

        blob = await self._run(f"read {key}", fetch, key=key)
        return await self._get_nothing(key) if blob is None else blob

    async def put(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        if await _is_large(body):
            return await self._complete.put(key, body, modified_ms=modified_ms)
        return await self._put(key, body, modified_ms, {})

    async def put_if_absent(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        if await _is_large(body):
            return await self._complete.put_if_absent(key, body, modified_ms=modified_ms)
        return await self._put(key, body, modified_ms, {"if-none-match": "*"})

    async def put_if_match(self, key: str, body: Body, etag: str, *, modified_ms: int | None = None) -> str:
        if await _is_large(body):
            return await self._complete.put_if_match(key, body, etag, modified_ms=modified_ms)
        try:
            return await self._put(key, body, modified_ms, {"if-match": etag})
        except NotFound as exc:
            raise PreconditionFailed(exc.message, key=key) from exc

    async def head(self, key: str) -> ObjectInfo:
        validate_key(key)

        def fetch(client: S3Requests) -> ObjectInfo:
            answer = client.head(self._base + key)
            given_ms = given_time_ms(answer.getheader(f"x-amz-meta-{TIMESTAMP_METADATA}", ""))
            return ObjectInfo(key, _size(answer), given_ms or _modified_ms(answer), _etag(answer))

        return await self._run(f"read {key}", fetch, key=key)

    async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
        validate_prefix(prefix)
        pages = await self._pages(prefix, start_after=start_after)
        return listed(prefix, start_after, (info for page in pages for info in page.objects))

    async def list_directory(self, prefix: str) -> DirectoryListing:
        validate_directory(prefix)
        pages = await self._pages(prefix, delimiter="/")
        prefixes = (each for page in pages for each in page.prefixes)
        return DirectoryListing.of(prefix, prefixes, [info for page in pages for info in page.objects])

    async def delete(self, keys: Sequence[str]) -> None:
        await self._complete.delete(keys)

    async def delete_if_match(self, key: str, etag: str) -> None:
        await self._complete.delete_if_match(key, etag)

    async def aclose(self) -> None:
        client = self._connection.take()
        if client is not None:
            client.close()
        await self._complete.aclose()

    async def _get_nothing(self, key: str) -> Blob:
        info = await self.head(key)
        return Blob(data=b"", size=info.size, etag=info.etag)

    async def _put(self, key: str, body: Body, modified_ms: int | None, condition: Mapping[str, str]) -> str:
        validate_key(key)
        headers = dict(condition)
        if modified_ms is not None:
            headers[f"x-amz-meta-{TIMESTAMP_METADATA}"] = format_time_nano(modified_ms)

        def send(client: S3Requests) -> str:
            data = body.read_bytes() if isinstance(body, Path) else body
            try:
                return client.put(self._base + key, data, headers, with_md5=self._sends_md5)
            except Refusal as exc:
                if self._sends_md5 or not s3_errors.wants_content_md5(exc.message):
                    raise
                self._sends_md5 = True
                return client.put(self._base + key, data, headers, with_md5=True)

        return await self._run(f"write {key}", send, key=key, conditional=bool(condition))

    async def _pages(self, prefix: str, *, delimiter: str = "", start_after: str | None = None) -> Sequence[Page]:
        """The pages of a listing, with keys below the URL's path."""

        def fetch(client: S3Requests) -> Sequence[Page]:
            pace = ListingPace(self.url)
            found = []
            after = self._base + start_after if start_after else ""
            for page in client.pages(self._base, prefix, delimiter=delimiter, start_after=after):
                trio.from_thread.check_cancelled()
                pace.received(len(page))
                found.append(page)
            return found

        return await self._run(f"list {prefix or 'objects'}", fetch, key=prefix)

    async def _run(self, doing: str, action: Callable[[S3Requests], T], *, key: str, conditional: bool = False) -> T:
        """Run `action` in a thread and translate its errors. `doing` is a verb with its object, for messages."""
        failure = s3_errors.Failure(doing, key=key, url=self.url, conditional=conditional)
        return await trio.to_thread.run_sync(
            lambda: _translating(self._connection, action, failure), limiter=self._limiter, abandon_on_cancel=True
        )


def _translating(
    connection: Connection[S3Requests], action: Callable[[S3Requests], T], failure: s3_errors.Failure
) -> T:
    try:
        client = connection.client()
        return action(client)
    except Refusal as exc:  # by `action`
        if s3_errors.refuses_credentials(exc.code) and connection.renew(client):
            return _translating(connection, action, failure)
        raise s3_errors.of_code(exc.code, exc.status, exc.message, failure) from exc
    except Exception as exc:
        error = s3_errors.translated(exc, failure)
        if error is None or error is exc:
            raise
        raise error from exc


async def _is_large(body: Body) -> bool:
    """True if a body is uploaded in parts."""
    return isinstance(body, Path) and (await trio.to_thread.run_sync(body.stat)).st_size >= s3_upload.MULTIPART_BYTES


def _etag(answer: PacedResponse) -> str:
    return answer.getheader("etag", "")


def _size(answer: PacedResponse) -> int:
    """The size of an object. Raises `ValueError` if the answer to a HEAD request does not give it."""
    text = answer.getheader("content-length", "")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"the answer has the Content-Length {text[:100]!r}")
    return int(text)


def _modified_ms(answer: PacedResponse) -> int:
    """The time of an object; 0 if the store gives none. Raises `ValueError` if it gives another text."""
    text = answer.getheader("last-modified", "")
    return milliseconds(parsedate_to_datetime(text)) if text else 0
