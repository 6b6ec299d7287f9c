"""An S3 store with any number of small objects in level 0, none of which exists: it answers listings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

from litereplica.format.names import Layout, file_key

BUCKET, PATH = "bench", "app.db"
PAGE = 1000
_BEGIN = '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
_ENTRY = (
    "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;{txid:032x}&quot;</ETag><Size>1000</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


@contextmanager
def listing_server(objects: int) -> Iterator[str]:
    """Serve a replica of so many files of level 0 during the block; yields its URL."""
    pages = {first: _page(first, objects) for first in range(1, objects + 1, PAGE)}
    nothing = f"{_BEGIN}<IsTruncated>false</IsTruncated></ListBucketResult>".encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            in_level_0 = query.get("prefix", [""])[0].startswith(f"{PATH}/0000/")
            body = pages[int(query.get("continuation-token", ["1"])[0])] if in_level_0 else nothing
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        yield f"s3://{BUCKET}/{PATH}?endpoint={endpoint}&region=us-east-1&forcePathStyle=true"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _page(first: int, objects: int) -> bytes:
    """The page of the listing that begins with the file of TXID `first`."""
    last = min(objects, first + PAGE - 1)
    entries = (
        _ENTRY.format(key=f"{PATH}/{file_key(Layout.S3, 0, txid, txid)}", txid=txid) for txid in range(first, last + 1)
    )
    more = f"<NextContinuationToken>{last + 1}</NextContinuationToken>" if last < objects else ""
    truncated = f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{more}"
    return "".join([_BEGIN, truncated, *entries, "</ListBucketResult>"]).encode()
