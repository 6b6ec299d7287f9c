"""Converts a replica's settings (`url`, or `type`, `bucket`, `path` and so on) into one URL and its credentials.

As in Litestream, the settings of the replica take precedence over those at the top of the file, and both over the URL's
parameters. `s3://bucket.provider/path` and `s3://bucket.localhost:9000/path`, which name the server, are accepted.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode

from litereplica.config.document import Section
from litereplica.config.keys import PARAMETERS_IDLE
from litereplica.errors import UsageError
from litereplica.storage.credentials import Credentials
from litereplica.storage.url import parse_url

_OTHER_TYPES = ("gs", "abs", "sftp", "webdav", "webdavs", "nats", "oss")
_HINT_TYPE = "name a directory (file) or a bucket (s3) instead"

_PROVIDERS = (
    (re.compile(r"(?P<bucket>.+)\.s3(?:\.(?P<region>[^.]+))?\.amazonaws\.com"), ""),
    (re.compile(r"(?P<bucket>.+)\.(?P<region>[^.]+)\.digitaloceanspaces\.com"), "https://{}.digitaloceanspaces.com"),
    (re.compile(r"(?P<bucket>.+)\.s3\.(?P<region>[^.]+)\.backblazeb2\.com"), "https://s3.{}.backblazeb2.com"),
    (re.compile(r"(?P<bucket>.+)\.(?P<region>s3)\.filebase\.com"), "https://s3.filebase.com"),
    (re.compile(r"(?P<bucket>.+)\.s3\.(?P<region>[^.]+)\.scw\.cloud"), "https://s3.{}.scw.cloud"),
)
"""Patterns of hosts that contain bucket, region and provider, and the endpoint of each provider."""
_LOCAL_HOST = re.compile(r"(?P<bucket>[^.:]+)\.(?P<server>[^:]+:[0-9]+)")


@dataclass(frozen=True, slots=True)
class Replica:
    """The replica of a database. `url` is canonical, without secrets; `notes` name parameters without effect."""

    url: str
    credentials: Credentials | None
    notes: tuple[str, ...] = ()


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
    notes: tuple[str, ...] = ()
    parameters: dict[str, str] = {}
    bucket, quoted_path = settings.pop("bucket"), quote(posixpath.normpath("/" + path).strip("/"))
    if url:
        bucket, quoted_path, parameters, notes = _split(section, url)
    if not bucket:
        raise section.error(f"{section.path} names no bucket", hint="add url: s3://bucket/path, or bucket and path")
    parameters |= {key: value for key, value in settings.items() if value}
    path_style = section.flag("force-path-style")
    if path_style is None:
        path_style = defaults.flag("force-path-style")
    if path_style is not None:
        parameters["forcePathStyle"] = str(path_style).lower()
    parsed = parse_url(f"s3://{bucket}/{quoted_path}?{urlencode(parameters)}")
    return Replica(str(parsed), _credentials(section, defaults), notes)


def _split(section: Section, url: str) -> tuple[str, str, dict[str, str], tuple[str, ...]]:
    """Bucket, quoted path, parameters and notes of an S3 URL."""
    base, _, query = url.partition("?")
    host, _, path = base.partition("://")[2].partition("/")
    if "@" in unquote(host):
        parse_url(url)  # raises the error about credentials
    notes = []
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(query):
        if name in PARAMETERS_IDLE:
            notes.append(f"{section.name('url')}, {name} (line {section.entry('url').line}): {PARAMETERS_IDLE[name]}")
        else:
            parameters["forcePathStyle" if name == "force-path-style" else name] = value
    bucket, named = _provider(host)
    return bucket, path, named | parameters, tuple(notes)


def _provider(host: str) -> tuple[str, dict[str, str]]:
    """The bucket in a host name, and the URL parameters that follow from the rest of the name."""
    for pattern, endpoint in _PROVIDERS:
        match = pattern.fullmatch(host)
        if match is not None:
            region = match["region"] or ""
            named = {"region": region if region != "s3" else "", "endpoint": endpoint.format(region)}
            return match["bucket"], {name: value for name, value in named.items() if value}
    match = _LOCAL_HOST.fullmatch(host)
    if match is not None:
        return match["bucket"], {"endpoint": f"http://{match['server']}"}
    return host, {}


def _credentials(section: Section, defaults: Section) -> Credentials | None:
    key, secret = (section.text(name) or defaults.text(name) for name in ("access-key-id", "secret-access-key"))
    if bool(key) != bool(secret):
        given, missing = ("access-key-id", "secret-access-key") if key else ("secret-access-key", "access-key-id")
        where = section if section.text(given) else defaults
        raise where.error(f"{where.name(given)} has no {missing} with it", key=given, hint=f"add {missing}")
    return Credentials(key, secret) if key else None


READERS = {"file": _file_replica, "s3": _s3_replica}
"""The parser for each type of replica, which is the scheme of its URL."""
