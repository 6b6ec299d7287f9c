"""A server that speaks as a test says, for the real S3 clients."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from litereplica.storage.base import Storage
from litereplica.storage.s3 import S3Storage
from litereplica.storage.s3_direct import DirectS3Storage
from litereplica.storage.url import parse_url

Serve: TypeAlias = Callable[[socket.socket, bytes], None]
Backend: TypeAlias = type[S3Storage] | type[DirectS3Storage]


@contextmanager
def tcp_server(backend: Backend, serve: Serve) -> Iterator[tuple[Storage, list[bytes]]]:
    """A server that reads the head of one request per connection, then does what the test says."""
    requests: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)

    def run() -> None:
        with listener:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(10)
                    head = b""
                    while b"\r\n\r\n" not in head and (data := connection.recv(65536)):
                        head += data
                    if head == b"stop\r\n\r\n":
                        return
                    requests.append(head)
                    try:
                        serve(connection, head)
                    except OSError:
                        continue  # the client has gone

    thread = threading.Thread(target=run)
    thread.start()
    port = listener.getsockname()[1]
    try:
        yield backend(parse_url(f"s3://bucket/path?endpoint=127.0.0.1:{port}")), requests
    finally:
        with socket.create_connection(("127.0.0.1", port)) as last:
            last.sendall(b"stop\r\n\r\n")
            thread.join(timeout=20)
        assert not thread.is_alive()


def answer(body: bytes, *, length: int | None = None, status: str = "200 OK", extra: str = "") -> bytes:
    length = len(body) if length is None else length
    headers = f'ETag: "e"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: {length}\r\n{extra}'
    return f"HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n".encode() + body


def headers(*lines: str, body: bytes = b"0123456789", status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "Connection: close", "", ""]).encode() + body
