"""Opens the storage that a replica URL names.

To add a kind of store, change these places; no other code depends on a URL's scheme:

- `storage/<name>.py`: its `Storage`, with the contract of `base.py`
- `storage/url.py`, `SCHEMES`: how its URLs are parsed and rendered
- `storage/open.py`, `OPENERS`: its constructor
- `ltxstore/store.py`, `LAYOUTS`: how the keys of its LTX files are named
- `config/replica.py`, `READERS`: its keys in the configuration file
- `tests/storage/test_<name>.py`: a class that inherits `testing.conformance.StorageConformance`
- the forms of URLs in `cli/main.py` and `docs/OPERATIONS.md`

`tests/storage/test_open.py` fails while one of the tables lacks a scheme that another has.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from litereplica.errors import UsageError
from litereplica.storage.base import Storage
from litereplica.storage.credentials import Credentials
from litereplica.storage.url import ReplicaURL, parse_url, redacted
from litereplica.storage.wrappers.retry import DEFAULT_POLICY, RetryPolicy, RetryStorage

log = logging.getLogger(__name__)

CLIENT_VARIABLE = "LITEREPLICA_S3_CLIENT"
"""The variable that chooses the S3 client: `direct`, the default, or `boto3`, which is slower and tolerates more kinds
of stores."""


def open_storage(url: str, *, policy: RetryPolicy = DEFAULT_POLICY, credentials: Credentials | None = None) -> Storage:
    """Return the storage that `url` names; it retries transient errors according to `policy`.

    Without `credentials` they come from the environment; a `file` URL needs none. Only the modules that the URL needs
    are imported; for S3, nothing is connected and no client library is imported before the first request.

    Raises:
        UsageError: `url` is not a replica URL, or the environment names an S3 client that does not exist.
    """
    parsed = parse_url(url)
    return RetryStorage(OPENERS[parsed.scheme](parsed, credentials), policy)


def _open_file(url: ReplicaURL, credentials: Credentials | None) -> Storage:
    from litereplica.storage.file import FileStorage

    return FileStorage(Path(url.path))


def _open_s3(url: ReplicaURL, credentials: Credentials | None) -> Storage:
    if url.options.skip_verify:
        log.warning("%s: the server's certificate is not checked, because of skip-verify", redacted(str(url)))
    client = os.environ.get(CLIENT_VARIABLE) or "direct"
    if client == "boto3":
        from litereplica.storage.s3 import S3Storage

        return S3Storage(url, credentials)
    if client != "direct":
        raise UsageError(f"{CLIENT_VARIABLE} is {client!r}", hint="set it to direct or boto3, or unset it")
    from litereplica.storage.s3_direct import DirectS3Storage

    return DirectS3Storage(url, credentials)


OPENERS: dict[str, Callable[[ReplicaURL, Credentials | None], Storage]] = {"file": _open_file, "s3": _open_s3}
