"""Parses replica URLs, and renders them without secrets. `SCHEMES` lists the kinds of URLs; `open.py` opens them.

The forms are Litestream's: `s3://bucket/path?endpoint=…&region=…&forcePathStyle=true` and `file:///path`. A URL names
the same place as in Litestream: the path of an S3 URL is percent-decoded, that of a file URL is taken literally. A URL
must not contain credentials, and no message repeats a part of a URL that could contain them.
"""

from __future__ import annotations

import ipaddress
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from litereplica.errors import UsageError
from litereplica.storage.keys import is_key

T = TypeVar("T")

S3_FORM = "s3://bucket/path?endpoint=…&region=…"
FILE_FORM = "file:///absolute/path"

_PROVIDER_DOMAINS = (
    ".amazonaws.com",
    ".backblazeb2.com",
    ".cloudflarestorage.com",
    ".digitaloceanspaces.com",
    ".filebase.com",
    ".scw.cloud",
)
"""Litestream also accepts `s3://bucket.provider/path`; here the endpoint must be given as a parameter."""


@dataclass(frozen=True, slots=True)
class ReplicaURL:
    """A parsed replica URL.

    `path` is an absolute path for `file`; for `s3` a key prefix without slashes at its ends, possibly empty.
    `endpoint` begins with `http://` or `https://`; empty means AWS. An empty `region` leaves it to the
    environment.
    """

    scheme: str
    path: str
    bucket: str = ""
    endpoint: str = ""
    region: str = ""
    force_path_style: bool = False

    def __str__(self) -> str:
        """The URL in its canonical form. It holds no secret."""
        return SCHEMES[self.scheme].render(self)

    @property
    def basename(self) -> str:
        """The last component of the path; the bucket's name if the path is empty."""
        return posixpath.basename(self.path) or self.bucket

    def below(self, prefix: str) -> ReplicaURL:
        """The URL of the replica at `prefix` below this one; this URL itself if `prefix` is empty."""
        return replace(self, path="/".join(part for part in (self.path, prefix) if part))


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the URLs of one kind of store are parsed and rendered; `form` is shown to users."""

    form: str
    parse: Callable[[str], ReplicaURL]
    render: Callable[[ReplicaURL], str]


def parse_url(url: str) -> ReplicaURL:
    """Parse a replica URL. Raises `UsageError`, whose hint shows the expected form."""
    if any(ord(character) < 32 or ord(character) == 127 for character in url):
        raise UsageError("the replica URL has a control character", hint="write it on one line")
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise UsageError(f"{redacted(url)!r} is not a URL", hint=f"write {_FORMS}")
    known = SCHEMES.get(scheme.lower())
    if known is None:
        raise UsageError(f"the URL scheme {scheme!r} is not supported", hint=f"write {_FORMS}")
    return known.parse(url)


def basename(url: str) -> str:
    """The last component of a URL's path: the default name of a mounted file."""
    return parse_url(url).basename


def redacted(url: str) -> str:
    """A URL as typed, for a message or a log: without its query; only the scheme if it may contain credentials."""
    if "@" in unquote(url):
        scheme, separator, _ = url.partition("://")
        return f"{scheme}://…" if separator else "…"
    return url.partition("?")[0]


def _parse_file(url: str) -> ReplicaURL:
    path, question_mark, query = url[len("file://") :].partition("?")
    if question_mark and query:
        name = query.partition("=")[0]
        raise UsageError(f"a file URL has no parameter {name!r}", hint=f"write {FILE_FORM}")
    if not path.startswith("/"):
        hint = "write three slashes: " + FILE_FORM
        raise UsageError(f"{redacted(url)!r} is not an absolute path", hint=hint)
    path = "/" + posixpath.normpath(path).lstrip("/")
    if path == "/":
        raise UsageError(f"{redacted(url)!r} names no directory", hint=f"write {FILE_FORM}")
    return ReplicaURL(scheme="file", path=path)


def _render_file(url: ReplicaURL) -> str:
    return f"file://{url.path}"


def _parse_s3(url: str) -> ReplicaURL:
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise UsageError(f"{redacted(url)!r} is not a URL", hint=f"write {S3_FORM}") from exc
    _refuse_credentials(url, parts.netloc)
    if parts.fragment:
        raise UsageError("an S3 URL has no part after '#'", hint="write %23 for a '#' in a path")
    options = _parse_query(parts.query)
    endpoint = options.get("endpoint", "")
    return ReplicaURL(
        scheme="s3",
        path=_key_prefix(url, parts.path),
        bucket=_bucket(url, parts.netloc),
        endpoint=_endpoint_url(endpoint) if endpoint else "",
        region=options.get("region", ""),
        force_path_style=_boolean("forcePathStyle", options.get("forcePathStyle", str(bool(endpoint)))),
    )


def _render_s3(url: ReplicaURL) -> str:
    base = f"s3://{url.bucket}" + (f"/{quote(url.path)}" if url.path else "")
    query = {"endpoint": url.endpoint, "region": url.region}
    options = {name: value for name, value in query.items() if value}
    if url.force_path_style != bool(url.endpoint):
        options["forcePathStyle"] = "true" if url.force_path_style else "false"
    return base + (f"?{urlencode(options, safe=':/')}" if options else "")


def _refuse_credentials(url: str, netloc: str) -> None:
    if "@" in netloc:
        hint = "put them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in a profile of ~/.aws"
        raise UsageError(f"{redacted(url)} contains credentials, which are not allowed in a URL", hint=hint)


def _bucket(url: str, netloc: str) -> str:
    if not netloc:
        raise UsageError(f"{redacted(url)!r} names no bucket", hint=f"write {S3_FORM}")
    if ":" in netloc or netloc.endswith(_PROVIDER_DOMAINS):
        raise UsageError(
            f"the host of {redacted(url)!r} is not a bucket name", hint=f"give the server as endpoint: {S3_FORM}"
        )
    return netloc


def _key_prefix(url: str, path: str) -> str:
    prefix = posixpath.normpath("/" + unquote(path)).strip("/")
    if prefix and not is_key(prefix):
        raise UsageError(f"the path of {redacted(url)!r} is not UTF-8 text", hint=f"write {S3_FORM}")
    return prefix


def _parse_query(query: str) -> dict[str, str]:
    """The parameters by Litestream's camel-case names. Empty values count as absent, as in Litestream."""
    options: dict[str, str] = {}
    for given, value in parse_qsl(query):
        name = _PARAMETERS.get(given)
        if name is None:
            raise UsageError(f"the URL parameter {given!r} is not supported", hint=_parameter_hint(given))
        if options.setdefault(name, value) != value:
            raise UsageError(f"the URL parameter {given!r} is given twice", hint="leave one of them")
    return options


_PARAMETERS = {
    "endpoint": "endpoint",
    "region": "region",
    "forcePathStyle": "forcePathStyle",
    "force-path-style": "forcePathStyle",
}


def _parameter_hint(name: str) -> str:
    if name in ("skipVerify", "skip-verify"):
        return "name the certificate authority in AWS_CA_BUNDLE instead; verification cannot be switched off"
    return "remove it; the parameters are endpoint, region and forcePathStyle"


def _boolean(name: str, value: str) -> bool:
    match value.lower():
        case "true" | "1" | "t" | "yes":
            return True
        case "false" | "0" | "f" | "no":
            return False
    raise UsageError(f"the URL parameter {name!r} is {value!r}", hint="write true or false")


def _endpoint_url(endpoint: str) -> str:
    """The endpoint with its scheme: http for this machine, https for all others, unless one is given."""
    if endpoint.partition("://")[0].lower() not in ("http", "https") or "://" not in endpoint:
        if "://" in endpoint:
            raise UsageError("the endpoint is neither http nor https", hint="write endpoint=https://host")
        endpoint = ("http://" if _is_loopback(endpoint) else "https://") + endpoint
    if "@" in unquote(endpoint):
        hint = "put them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise UsageError("the endpoint contains credentials, which are not allowed in a URL", hint=hint)
    parts = _checked(lambda: urlsplit(endpoint))
    _checked(lambda: parts.port)
    if not parts.hostname or parts.query or parts.fragment:
        raise UsageError("the endpoint names no server", hint="write endpoint=https://host or host:port")
    return endpoint.rstrip("/")


def _is_loopback(endpoint: str) -> bool:
    host = _checked(lambda: urlsplit("//" + endpoint).hostname) or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _checked(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except ValueError as exc:
        raise UsageError("the endpoint is not a URL", hint="write endpoint=https://host or host:port") from exc


SCHEMES = {
    "file": Scheme(FILE_FORM, _parse_file, _render_file),
    "s3": Scheme(S3_FORM, _parse_s3, _render_s3),
}
"""By the scheme in lower case. `open.py` lists what else a new scheme needs."""
_FORMS = " or ".join(scheme.form for scheme in SCHEMES.values())
