"""Objects in an S3 bucket, through obstore (Rust's object_store), and through boto3 where obstore does not suffice.

`ObstoreS3Storage` sends GET, HEAD, LIST and PUT through obstore, at a third to an eighth of boto3's CPU time, and
without importing boto3. The backend `s3.S3Storage` (`complete`) does what obstore cannot:

- deletes (obstore's have a checksum header that some stores reject, and no condition), and uploads in parts;
- listings with keys that obstore refuses to parse (control characters, empty components);
- all requests, once the store has sent an answer that obstore cannot read (no Content-Length, `Content-Range: bytes
  a-b/*`); this is logged once.

obstore's own retries are off: only `wrappers.RetryStorage` retries. Requests run in threads; a cancelled one continues
in its thread. `s3_connection.py` makes the client.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from litereplica.errors import NotFound, PreconditionFailed, StorageError, TransientStorageError
from litereplica.storage import s3_client, s3_errors, s3_upload
from litereplica.storage.base import Blob, Body, ByteRange, DirectoryListing, ObjectInfo, Range, Storage
from litereplica.storage.keys import is_key, validate_directory, validate_key, validate_prefix
from litereplica.storage.pace import ListingPace, Pace
from litereplica.storage.ranges import resolve_range, validate_range
from litereplica.storage.s3 import TIMESTAMP_METADATA, S3Storage, is_empty
from litereplica.storage.s3_client import given_time_ms
from litereplica.storage.s3_connection import Connection, connect, request_timeout_s
from litereplica.times import format_time_nano, milliseconds

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta, PutMode
    from obstore.store import S3Store

    from litereplica.storage.credentials import Credentials
    from litereplica.storage.url import ReplicaURL

log = logging.getLogger(__name__)

T = TypeVar("T")

LIST_CHUNK = 1000
"""Number of keys in a page of a listing; cancellation and the deadline are checked between pages."""
BODY_CHUNK_BYTES = 1
"""Chunks are passed on as they arrive, so that a slow body is noticed."""

REQUEST_SIZES = (1 << 20, 4 << 20, 16 << 20, 1 << 40)
"""Requests of up to this many bytes have a client of their own, since obstore limits the time of a whole request only,
and that per client. The smallest are those of mounts, and listings."""

_DEBUG = "\n\nDebug source:"
"""Separates the message of obstore's errors from a dump of its internals."""
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,1000})</Message>")
_RANGE_NOT_SATISFIABLE = 416
_NETWORK = re.compile(r"HTTP error|error sending request|error decoding|timed? ?out|connection|body", re.IGNORECASE)


class Unusable(Exception):
    """The store sends answers that obstore cannot read, or needs requests that it cannot send; boto3 may work."""


class ObstoreS3Storage(Storage):
    """Objects of a bucket below the URL's path. Nothing is imported or connected before the first request."""

    def __init__(self, url: ReplicaURL, credentials: Credentials | None = None) -> None:
        self._url = url
        self._complete = S3Storage(url, credentials)
        self._use_complete = False
        self._limiter = trio.CapacityLimiter(s3_client.MAX_CONNECTIONS)
        self._connections = {
            size: Connection(partial(connect, url, credentials, timeout_s=request_timeout_s(size)))
            for size in REQUEST_SIZES
        }

    @property
    def url(self) -> str:
        return str(self._url)

    async def get(self, key: str, range: Range | None = None) -> Blob:
        validate_key(key)
        validate_range(range)
        if range is not None and is_empty(range):
            return await self._get_nothing(key)
        options = _options(range)

        def fetch(store: S3Store) -> Blob:
            import obstore

            return _blob(obstore.get(store, key, options=options), range)

        try:
            size = _requested(range)
            return await self._run(f"read {key}", fetch, lambda: self._complete.get(key, range), key=key, size=size)
        except _BeyondTheEnd:
            return await self._get_nothing(key)

    async def put(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        return await self._put(
            key, body, modified_ms, "overwrite", lambda: self._complete.put(key, body, modified_ms=modified_ms)
        )

    async def put_if_absent(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        return await self._put(
            key, body, modified_ms, "create", lambda: self._complete.put_if_absent(key, body, modified_ms=modified_ms)
        )

    async def put_if_match(self, key: str, body: Body, etag: str, *, modified_ms: int | None = None) -> str:
        try:
            return await self._put(
                key,
                body,
                modified_ms,
                {"e_tag": etag},
                lambda: self._complete.put_if_match(key, body, etag, modified_ms=modified_ms),
            )
        except NotFound as exc:
            raise PreconditionFailed(exc.message, key=key) from exc

    async def head(self, key: str) -> ObjectInfo:
        validate_key(key)

        def fetch(store: S3Store) -> ObjectInfo:
            import obstore

            found = obstore.get(store, key, options={"head": True})
            given_ms = given_time_ms(str(found.attributes.get(TIMESTAMP_METADATA, "")))
            info = _info(found.meta, key)
            return info if given_ms is None else ObjectInfo(key, info.size, given_ms, info.etag)

        return await self._run(f"read {key}", fetch, lambda: self._complete.head(key), key=key)

    async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
        validate_prefix(prefix)
        directory = prefix[: prefix.rfind("/") + 1]

        def fetch(store: S3Store) -> list[ObjectInfo]:
            import obstore

            pages = obstore.list(store, directory or None, offset=start_after or None, chunk_size=LIST_CHUNK)
            return [_info(meta, meta["path"]) for page in _paced(pages, self.url) for meta in page]

        doing = f"list {prefix or 'objects'}"
        found = await self._run(doing, fetch, lambda: self._complete.list(prefix, start_after=start_after), key=prefix)
        wanted = (
            info
            for info in found
            if info.key.startswith(prefix) and is_key(info.key) and info.key > (start_after or "")
        )
        return sorted(wanted, key=lambda info: info.key)  # not every store lists in the order of bytes

    async def list_directory(self, prefix: str) -> DirectoryListing:
        validate_directory(prefix)

        def fetch(store: S3Store) -> DirectoryListing:
            import obstore

            found = obstore.list_with_delimiter(store, prefix or None)
            prefixes = (str(each) + "/" for each in found["common_prefixes"])
            return DirectoryListing.of(prefix, prefixes, [_info(meta, meta["path"]) for meta in found["objects"]])

        return await self._run(
            f"list {prefix or 'objects'}", fetch, lambda: self._complete.list_directory(prefix), key=prefix
        )

    async def delete(self, keys: Sequence[str]) -> None:
        await self._complete.delete(keys)

    async def delete_if_match(self, key: str, etag: str) -> None:
        await self._complete.delete_if_match(key, etag)

    async def aclose(self) -> None:
        for connection in self._connections.values():
            connection.take()
        await self._complete.aclose()

    async def _get_nothing(self, key: str) -> Blob:
        info = await self.head(key)
        return Blob(data=b"", size=info.size, etag=info.etag)

    async def _put(
        self, key: str, body: Body, modified_ms: int | None, mode: PutMode, complete: Callable[[], Any]
    ) -> str:
        validate_key(key)
        size = len(body) if isinstance(body, bytes) else (await trio.to_thread.run_sync(body.stat)).st_size
        if isinstance(body, Path) and size >= s3_upload.MULTIPART_BYTES:
            etag: str = await complete()
            return etag
        attributes = {} if modified_ms is None else {TIMESTAMP_METADATA: format_time_nano(modified_ms)}
        if self._url.options.storage_class:
            attributes["Storage-Class"] = self._url.options.storage_class

        def send(store: S3Store) -> str:
            import obstore

            data = body.read_bytes() if isinstance(body, Path) else body
            sent = obstore.put(store, key, data, attributes=attributes, mode=mode, use_multipart=False)
            return sent["e_tag"] or ""

        return await self._run(f"write {key}", send, complete, key=key, conditional=mode != "overwrite", size=size)

    async def _run(
        self,
        doing: str,
        action: Callable[[S3Store], T],
        complete: Callable[[], Any],
        *,
        key: str,
        conditional: bool = False,
        size: int = 0,
    ) -> T:
        """Run `action` in a thread and translate its errors; await `complete()` if obstore does not suffice.

        `doing` is a verb with its object, for messages. `size` is the number of bytes to be sent or received.
        """
        connection = self._connections[next((limit for limit in REQUEST_SIZES if size <= limit), REQUEST_SIZES[-1])]
        failure = s3_errors.Failure(doing, key=key, url=self.url, conditional=conditional)
        if not self._use_complete:
            try:
                return await trio.to_thread.run_sync(
                    lambda: _translating(connection, action, failure),
                    limiter=self._limiter,
                    abandon_on_cancel=True,
                )
            except Unusable as exc:
                if not self._use_complete:
                    log.warning("%s: obstore does not work with this store (%s): using boto3", self.url, exc)
                self._use_complete = True
            except _UnreadableKey as exc:
                log.debug("%s: %s: using boto3", self.url, exc)
        found: T = await complete()
        return found


def _translating(connection: Connection[S3Store], action: Callable[[S3Store], T], failure: s3_errors.Failure) -> T:
    try:
        store = connection.client()
    except Exception as exc:
        raise s3_errors.translated(exc, failure) or exc from exc
    try:
        return action(store)
    except Exception as exc:
        if _refuses_credentials(exc) and connection.renew(store):
            return _translating(connection, action, failure)
        raise translated(exc, failure) from exc


class _BeyondTheEnd(Exception):
    """A range that begins at or beyond the end of the object (416)."""


class _UnreadableKey(Exception):
    """A listing names a key that obstore cannot parse."""


def _refuses_credentials(exc: Exception) -> bool:
    code = _CODE.search(str(exc).partition(_DEBUG)[0])
    return code is not None and s3_errors.refuses_credentials(code[1])


def translated(exc: Exception, failure: s3_errors.Failure) -> Exception:
    """The error of the storage contract for one of obstore's; `Unusable`; or `exc` itself if it is a bug of ours."""
    import obstore.exceptions

    text = str(exc).partition(_DEBUG)[0]
    status = _STATUS.search(text)
    if status is not None:
        if int(status[1]) == _RANGE_NOT_SATISFIABLE:
            return _BeyondTheEnd()
        code, message = _CODE.search(text), _MESSAGE.search(text)
        if message is not None and s3_errors.wants_content_md5(message[1]):
            return Unusable("the store requires Content-MD5")
        reason = message[1] if message else f"HTTP status {status[1]}"
        return s3_errors.of_code(code[1] if code else "", int(status[1]), reason, failure)
    match exc:
        case TimeoutError() | ConnectionError():
            return failure.error(TransientStorageError, str(exc) or type(exc).__name__, s3_errors.HINT_ENDPOINT)
        case (
            FileNotFoundError() | obstore.exceptions.PermissionDeniedError() | obstore.exceptions.UnauthenticatedError()
        ):
            code_name = "NoSuchKey" if isinstance(exc, FileNotFoundError) else "AccessDenied"
            return s3_errors.of_code(code_name, 0, text, failure)
        case obstore.exceptions.AlreadyExistsError() | obstore.exceptions.PreconditionError():
            return s3_errors.of_code("PreconditionFailed", 0, text, failure)
        case ValueError() if "pars" in text:
            return _UnreadableKey(text)
        case obstore.exceptions.BaseError():
            if "certificate" in str(exc).lower() or "UnknownIssuer" in str(exc):
                hint = "name the certificate authority in AWS_CA_BUNDLE"
                return failure.error(StorageError, "the server's certificate is not trusted", hint)
            if "Error parsing Path" in text or "illegal character" in text or "empty path segment" in text.lower():
                return _UnreadableKey(text)
            if _NETWORK.search(text) is not None:
                return failure.error(TransientStorageError, text, s3_errors.HINT_ENDPOINT)
            return Unusable(" ".join(text.split())[: s3_errors.MAX_REASON_CHARACTERS])
    return exc


def _requested(range: Range | None) -> int:
    """The number of bytes that a range asks for; of a whole object, as many as a request may have."""
    if range is None:
        return REQUEST_SIZES[-1]
    return range.stop - range.start if isinstance(range, ByteRange) else range.length


def _options(range: Range | None) -> GetOptions:
    if range is None:
        return {}
    return {"range": (range.start, range.stop) if isinstance(range, ByteRange) else {"suffix": range.length}}


def _blob(answer: GetResult, range: Range | None) -> Blob:
    """The object or its part. Reads no more than the requested bytes; raises if they arrive too slowly."""
    meta = answer.meta
    size = meta["size"]
    start, stop = answer.range
    wanted = resolve_range(range, size)
    pace = Pace(s3_client.READ_TIMEOUT_S)
    parts: list[bytes] = []
    received = 0
    for part in answer.stream(min_chunk_size=BODY_CHUNK_BYTES):
        trio.from_thread.check_cancelled()
        parts.append(bytes(part))
        received += len(part)
        if received > stop - start:
            raise ConnectionError(f"the answer is longer than the {stop - start} bytes that it announced")
        pace.received(len(part))
    if received != stop - start:
        raise ConnectionError(f"the answer ended after {received} of {stop - start} bytes")
    data = b"".join(parts)
    if (start, stop) != (wanted.start, wanted.stop):
        data = data[wanted.start - start : wanted.stop - start]
    return Blob(data=data, size=size, etag=meta["e_tag"] or "")


def _paced(pages: Iterable[Sequence[ObjectMeta]], url: str) -> Iterable[Sequence[ObjectMeta]]:
    """The pages of a listing. Raises on cancellation, and as `ListingPace`."""
    pace = ListingPace(url)
    for page in pages:
        trio.from_thread.check_cancelled()
        pace.received(len(page))
        yield page


def _info(meta: ObjectMeta, key: str) -> ObjectInfo:
    modified: datetime = meta["last_modified"]
    return ObjectInfo(key, meta["size"], milliseconds(modified), meta["e_tag"] or "")
