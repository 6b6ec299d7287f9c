"""Requests to one bucket of an S3 store: signed, with an answer of limited size.

Blocking, and thread-safe. `Refusal` is an answer that says no; errors of the network are `ConnectionError` or
`TimeoutError`, an answer of another form than HTTP and S3 have is a `ValueError`.
"""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.client import HTTPException
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from litereplica.storage.s3_listing import Page, encoded_parameters, parse_page
from litereplica.storage.s3_options import ALGORITHM, S3Options
from litereplica.storage.s3_signature import UNSIGNED_PAYLOAD, KeyPair, encoded_query, signed, utc_now

if TYPE_CHECKING:
    from http.client import HTTPConnection

    from litereplica.storage.http_pool import HTTPPool
    from litereplica.storage.paced_response import PacedResponse

T = TypeVar("T")

READ_BYTES = 64 << 10

_CODE = re.compile(rb"<Code>([^<]{1,100})</Code>")
_MESSAGE = re.compile(rb"<Message>([^<]{1,1000})</Message>")
_NO_BODY = hashlib.sha256().hexdigest()


class Refusal(Exception):
    """An answer with an error: its HTTP status, and the code and message of its body, empty if there are none."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"HTTP status {status} {code}")
        self.status = status
        self.code = code
        self.message = message or f"HTTP status {status}"


class S3Requests:
    """`base` is the path of the bucket on the server of `pool`. `provider` returns the credentials for a request."""

    def __init__(
        self,
        pool: HTTPPool,
        *,
        base: str,
        region: str,
        provider: Callable[[], KeyPair],
        options: S3Options,
        sse_key: str,
    ) -> None:
        self._pool = pool
        self._base = base
        self._region = region
        self._provider = provider
        self._options = options
        self._customer = _customer_headers(sse_key)
        self._encryption = dict(self._customer)
        if not sse_key and options.sse_kms_key_id:
            self._encryption["x-amz-server-side-encryption"] = "aws:kms"
            self._encryption["x-amz-server-side-encryption-aws-kms-key-id"] = options.sse_kms_key_id

    @property
    def host(self) -> str:
        """The server's name, with a port that is not the usual one."""
        return self._pool.host

    def path(self, key: str) -> str:
        """The path of an object on the server, or of the bucket if `key` is empty."""
        return quote(f"{self._base}/{key}" if key else self._base or "/")

    def get(self, key: str, span: str, read: Callable[[PacedResponse], T]) -> T:
        """Request an object, or the part of it that the Range header `span` names; returns what `read` makes of it."""
        answer, connection = self._send("GET", key, headers={**({"range": span} if span else {}), **self._customer})
        try:
            with _network_errors():
                return read(answer)
        finally:
            self._pool.give_back(connection, answer)

    def head(self, key: str) -> PacedResponse:
        """Return the answer to a request for the headers of an object."""
        return self._whole("HEAD", key, headers=self._customer)[1]

    def put(self, key: str, body: bytes, headers: Mapping[str, str], *, with_md5: bool) -> str:
        """Store an object, and return its ETag; empty if the store does not say it."""
        headers = {**headers, **self._encryption}
        if self._options.storage_class:
            headers["x-amz-storage-class"] = self._options.storage_class
        if with_md5:
            headers["content-md5"] = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        return self._whole("PUT", key, headers=headers, body=body)[1].getheader("etag", "")

    def pages(self, base: str, prefix: str, *, delimiter: str = "", start_after: str = "") -> Iterator[Page]:
        """The pages of a listing of keys that begin with `base` and `prefix`, without `base`.

        `start_after` is a whole key. Raises `ValueError` if the pages repeat themselves.
        """
        token: str | None = None
        while True:
            query = encoded_query(
                encoded_parameters(base + prefix, delimiter=delimiter, start_after=start_after, token=token)
            )
            page = parse_page(self._whole("GET", "", query=query)[0], base)
            yield page
            if page.token is None:
                return
            if page.token == token:
                raise ValueError("the listing goes on where it began")
            token = page.token

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._pool.close()

    def _whole(
        self, method: str, key: str, *, query: str = "", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> tuple[bytes, PacedResponse]:
        """Send a request, and return the body of the answer, which is limited, and the answer."""
        answer, connection = self._send(method, key, query=query, headers=headers or {}, body=body)
        return _read(answer, connection, self._pool), answer

    def _send(
        self, method: str, key: str, *, headers: Mapping[str, str], query: str = "", body: bytes = b""
    ) -> tuple[PacedResponse, HTTPConnection]:
        """Send a request. Raises `Refusal`, `ConnectionError`, `TimeoutError`, `ssl.SSLCertVerificationError`."""
        path = self.path(key)
        sha256 = UNSIGNED_PAYLOAD
        if self._options.sign_payload:
            sha256 = hashlib.sha256(body).hexdigest() if body else _NO_BODY
        found = signed(
            method,
            path,
            query,
            {"host": self.host, **headers},
            keys=self._provider(),
            region=self._region,
            payload_sha256=sha256,
            now=utc_now(),
        )
        target = f"{path}?{query}" if query else path
        with _network_errors():
            answer, connection = self._pool.request(method, target, found, body)
        if answer.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.NO_CONTENT):
            raise _refusal(answer.status, _read(answer, connection, self._pool))
        return answer, connection


@contextmanager
def _network_errors() -> Iterator[None]:
    """Turn what the network or the server does to a connection into `ConnectionError`, if it is no other error yet."""
    try:
        yield
    except (ConnectionError, TimeoutError, ssl.SSLCertVerificationError):
        raise
    except (OSError, HTTPException) as exc:
        raise ConnectionError(str(exc) or type(exc).__name__) from exc


def _read(answer: PacedResponse, connection: HTTPConnection, pool: HTTPPool) -> bytes:
    """The whole body of an answer, which is limited by its connection. `answer.read` would reserve what it claims."""
    try:
        with _network_errors():
            body = b"".join(iter(partial(answer.read1, READ_BYTES), b""))
        if answer.length:
            raise ConnectionError(f"the answer ended {answer.length} bytes early")
        return body
    finally:
        pool.give_back(connection, answer)


def _refusal(status: int, body: bytes) -> Refusal:
    code, message = _CODE.search(body), _MESSAGE.search(body)
    return Refusal(
        status,
        code[1].decode(errors="replace") if code else _code_of_redirect(status),
        message[1].decode(errors="replace") if message else "",
    )


def _code_of_redirect(status: int) -> str:
    """S3's code for a redirection: for some minutes, while a new bucket becomes known, or to another region."""
    if status == HTTPStatus.TEMPORARY_REDIRECT:
        return "TemporaryRedirect"
    return "PermanentRedirect" if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST else ""


def _customer_headers(sse_key: str) -> dict[str, str]:
    """The headers of a request that reads or writes an object with an SSE-C key, given as base64 (empty: none)."""
    if not sse_key:
        return {}
    digest = hashlib.md5(base64.b64decode(sse_key), usedforsecurity=False).digest()
    prefix = "x-amz-server-side-encryption-customer-"
    return {
        f"{prefix}algorithm": ALGORITHM,
        f"{prefix}key": sse_key,
        f"{prefix}key-md5": base64.b64encode(digest).decode(),
    }
