"""Converts a replica's settings (`url`, or `type`, `bucket`, `path` and so on) into one URL and its credentials.

As in Litestream, the settings of the replica take precedence over those at the top of the file, and both over the URL's
parameters.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode

from litereplica.config.document import Section
from litereplica.errors import UsageError
from litereplica.storage.credentials import Credentials, is_sse_key
from litereplica.storage.s3_options import BOOLEAN_NAMES, OPTION_NAMES, hyphenated
from litereplica.storage.url import is_loopback, parse_url, require_confidential

_OTHER_TYPES = ("gs", "abs", "sftp", "webdav", "webdavs", "nats", "oss")
_HINT_TYPE = "name a directory (file) or a bucket (s3) instead"


@dataclass(frozen=True, slots=True)
class Replica:
    """The replica of a database. `url` is canonical, without secrets."""

    url: str
    credentials: Credentials | None


def parse_replica(section: Section, defaults: Section, *, absolute: Callable[[str], str]) -> Replica:
    """Parse the replica in a section; `defaults` is the document, `absolute` makes a path absolute.

    Raises:
        UsageError: the settings are incomplete or contradictory.
    """
    url, path = section.text("url"), section.text("path")
    if "://" in path:
        raise section.error(f"{section.name('path')} is a URL", key="path", hint="name it as url")
    kind = _type(section, url)
    if url and path:
        raise section.error(f"{section.name('url')} and path exclude each other", key="path", hint="leave one of them")
    try:
        return READERS[kind](section, defaults, url, path, absolute)
    except UsageError as exc:
        if exc.message.startswith(section.file):
            raise
        for where in (section, defaults):
            for key in where:
                if exc.message.startswith(f"{key} "):
                    raise where.error(exc.message.replace(key, where.name(key), 1), key=key, hint=exc.hint) from exc
        raise section.error(f"{section.path}: {exc.message}", key="url" if url else "path", hint=exc.hint) from exc


def _type(section: Section, url: str) -> str:
    kind = url.partition("://")[0].lower() if "://" in url else section.text("type", "file")
    if kind in READERS:
        return kind
    key = "url" if "://" in url else "type"
    if kind in _OTHER_TYPES:
        raise section.error(f"{section.name(key)}: a replica of type {kind} is not supported", key=key, hint=_HINT_TYPE)
    raise section.error(f"{section.name(key)} is of no known type", key=key, hint=f"there are {' and '.join(READERS)}")


def _file_replica(section: Section, defaults: Section, url: str, path: str, absolute: Callable[[str], str]) -> Replica:
    if url:
        return Replica(str(parse_url(url)), None)
    if not path:
        raise section.error(f"{section.path} names neither url nor path", hint="add url: s3://bucket/path, or path")
    return Replica(str(parse_url("file://" + absolute(path))), None)


def _s3_replica(section: Section, defaults: Section, url: str, path: str, absolute: Callable[[str], str]) -> Replica:
    settings = {key: section.text(key) or defaults.text(key) for key in ("bucket", "region", "endpoint")}
    if url and settings["bucket"]:
        key = "bucket" if section.text("bucket") else None
        raise section.error(f"{section.path}: url and bucket exclude each other", key=key, hint="leave one of them")
    endpoint = settings["endpoint"]
    if endpoint and "://" not in endpoint and not is_loopback(endpoint):
        settings["endpoint"] = f"https://{endpoint}"  # in a URL the hosts of a private network are asked over http
    bucket, quoted_path = settings.pop("bucket"), quote(posixpath.normpath("/" + path).strip("/"))
    if not url and not bucket:
        raise section.error(f"{section.path} names no bucket", hint="add url: s3://bucket/path, or bucket and path")
    base, _, query = (str(parse_url(url)) if url else f"s3://{bucket}/{quoted_path}").partition("?")
    parameters = dict(parse_qsl(query)) | {key: value for key, value in settings.items() if value}
    parameters |= _options(section, defaults, absolute)
    parsed = parse_url(f"{base}?{urlencode(parameters)}")
    credentials = _credentials(section, defaults)
    if credentials is not None and credentials.sse_customer_key:
        options = parsed.options
        if options.sse_kms_key_id or options.sse_customer_key_path:
            raise section.error(
                f"{section.path}: sse-customer-key excludes sse-kms-key-id and sse-customer-key-path",
                hint="leave one of them",
            )
        require_confidential(parsed)
    return Replica(str(parsed), credentials)


def _options(section: Section, defaults: Section, absolute: Callable[[str], str]) -> dict[str, str]:
    """The parameters of the URL that keys of the section, else of the top of the file, stand for."""
    found = {}
    for name in ("forcePathStyle", *OPTION_NAMES):
        key = hyphenated(name)
        if name in BOOLEAN_NAMES or name == "forcePathStyle":
            flag = section.flag(key)
            flag = defaults.flag(key) if flag is None else flag
            text = "" if flag is None else str(flag).lower()
        else:
            text = section.text(key) or defaults.text(key)
        if text:
            found[name] = absolute(text) if name == "sseCustomerKeyPath" else text
    return found


def _credentials(section: Section, defaults: Section) -> Credentials | None:
    key, secret, sse_key = (
        section.text(name) or defaults.text(name) for name in ("access-key-id", "secret-access-key", "sse-customer-key")
    )
    if bool(key) != bool(secret):
        given, missing = ("access-key-id", "secret-access-key") if key else ("secret-access-key", "access-key-id")
        where = section if section.text(given) else defaults
        blamed = missing if missing in set(where) else given
        raise where.error(f"{where.name(given)} has no {missing} with it", key=blamed, hint=f"add {missing}")
    if sse_key and not is_sse_key(sse_key):
        where = section if section.text("sse-customer-key") else defaults
        hint = "write the base64 text of 32 bytes, such as 'openssl rand -base64 32' prints"
        raise where.error(f"{where.name('sse-customer-key')} is not a key", key="sse-customer-key", hint=hint)
    return Credentials(key, secret, sse_customer_key=sse_key) if key or sse_key else None


READERS = {"file": _file_replica, "s3": _s3_replica}
"""The parser for each type of replica, which is the scheme of its URL."""
