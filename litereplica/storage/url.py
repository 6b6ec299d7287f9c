"""Parses replica URLs, and renders them without secrets. `SCHEMES` lists the kinds of URLs; `open.py` opens them.

The forms are Litestream's: `s3://bucket/path?endpoint=…&region=…&forcePathStyle=true` and `file:///path`. A URL names
the same place as in Litestream: the path of an S3 URL is percent-decoded, that of a file URL is taken literally, and
`s3://bucket.provider/path` and `s3://bucket.localhost:9000/path` name the server. A URL must not contain credentials,
and no message repeats a part of a URL that could contain them.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from litereplica.errors import UsageError
from litereplica.storage.keys import is_key
from litereplica.storage.s3_options import OPTION_NAMES, S3Options, hyphenated, parse_boolean, parse_options

T = TypeVar("T")

S3_FORM = "s3://bucket/path?endpoint=…&region=…"
FILE_FORM = "file:///absolute/path"

_PROVIDERS = (
    (re.compile(r"(?P<bucket>.+)\.s3(?:\.(?P<region>[^.]+))?\.amazonaws\.com"), ""),
    (re.compile(r"(?P<bucket>.+)\.(?P<region>[^.]+)\.digitaloceanspaces\.com"), "https://{}.digitaloceanspaces.com"),
    (re.compile(r"(?P<bucket>.+)\.s3\.(?P<region>[^.]+)\.backblazeb2\.com"), "https://s3.{}.backblazeb2.com"),
    (re.compile(r"(?P<bucket>.+)\.(?P<region>s3)\.filebase\.com"), "https://s3.filebase.com"),
    (re.compile(r"(?P<bucket>.+)\.s3\.(?P<region>[^.]+)\.scw\.cloud"), "https://s3.{}.scw.cloud"),
)
"""Patterns of hosts that contain bucket, region and provider, and the endpoint of each provider."""
_PROVIDER_DOMAINS = (
    ".amazonaws.com",
    ".backblazeb2.com",
    ".cloudflarestorage.com",
    ".digitaloceanspaces.com",
    ".filebase.com",
    ".scw.cloud",
)
_LOCAL_HOST = re.compile(r"(?P<bucket>[^.:]+)\.(?P<server>[^:]+:[0-9]+)")
_ACCESS_POINT = re.compile(
    r"arn:(?P<partition>aws[a-z-]*):s3:(?P<region>[a-z0-9-]+):(?P<account>[0-9]{12}):accesspoint/(?P<name>[a-z0-9-]{3,50})"
)
"""The ARN of an access point, which stands for a bucket; in a URL its name is the first component of the path."""

_SQLITE_SCHEMES = ("sqlite3://", "sqlite://")
"""Prefixes that Litestream removes from the path of a database."""


@dataclass(frozen=True, slots=True)
class ReplicaURL:
    """A parsed replica URL.

    `path` is an absolute path for `file`; for `s3` a key prefix without slashes at its ends, possibly empty.
    `endpoint` begins with `http://` or `https://`; empty means AWS. An empty `region` leaves it to the
    environment. `options` are not part of the place.
    """

    scheme: str
    path: str
    bucket: str = ""
    endpoint: str = ""
    region: str = ""
    force_path_style: bool = False
    options: S3Options = field(default_factory=S3Options)

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


def same_place(first: str, second: str) -> bool:
    """True if two URLs name the same replica: if they differ in options at most."""
    if first == second:
        return True
    try:
        return replace(parse_url(first), options=S3Options()) == replace(parse_url(second), options=S3Options())
    except UsageError:
        return False


def require_confidential(url: ReplicaURL) -> None:
    """Raise `UsageError` if a key of SSE-C would leave this machine's network unencrypted."""
    if url.endpoint.startswith("http://") and not _is_local(url.endpoint.partition("://")[2]):
        raise UsageError("an SSE-C key would be sent over plain http", hint="write endpoint=https://…")


def without_sqlite_scheme(path: str) -> str:
    """The path of a database that is given as `sqlite://path` or `sqlite3://path`, or as a path."""
    for scheme in _SQLITE_SCHEMES:
        path = path.removeprefix(scheme)
    return path


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
    netloc, path = _with_access_point(url, parts.netloc, parts.path)
    bucket, by_host = _bucket(url, netloc)
    parameters = by_host | _parse_query(parts.query)
    endpoint = parameters.get("endpoint", "")
    parsed = ReplicaURL(
        scheme="s3",
        path=_key_prefix(url, path),
        bucket=bucket,
        endpoint=endpoint_url(endpoint),
        region=parameters.get("region", ""),
        force_path_style=parse_boolean("forcePathStyle", parameters.get("forcePathStyle", str(bool(endpoint)))),
        options=parse_options(parameters),
    )
    if parsed.options.sse_customer_key_path:
        require_confidential(parsed)
    return parsed


def _render_s3(url: ReplicaURL) -> str:
    base = f"s3://{url.bucket}" + (f"/{quote(url.path)}" if url.path else "")
    query = {"endpoint": url.endpoint, "region": url.region}
    parameters = {name: value for name, value in query.items() if value}
    if url.force_path_style != bool(url.endpoint):
        parameters["forcePathStyle"] = "true" if url.force_path_style else "false"
    parameters |= url.options.parameters()
    return base + (f"?{urlencode(parameters, safe=':/')}" if parameters else "")


def _refuse_credentials(url: str, netloc: str) -> None:
    if "@" in netloc:
        hint = "put them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in a profile of ~/.aws"
        raise UsageError(f"{redacted(url)} contains credentials, which are not allowed in a URL", hint=hint)


def _with_access_point(url: str, netloc: str, path: str) -> tuple[str, str]:
    """Host and path of a URL; if it has the ARN of an access point, this as a whole as the host."""
    if not netloc.startswith("arn:"):
        return netloc, path
    name, _, rest = path.lstrip("/").partition("/")
    arn = f"{netloc}/{name}"
    if _ACCESS_POINT.fullmatch(arn) is None:
        hint = "write s3://arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME/path"
        raise UsageError(f"{redacted(url)!r} has no ARN of an access point", hint=hint)
    return arn, rest


def access_point_endpoint(bucket: str) -> str | None:
    """The endpoint of an access point whose ARN stands for a bucket; None if it is a bucket."""
    found = _ACCESS_POINT.fullmatch(bucket)
    if found is None:
        return None
    domain = "amazonaws.com.cn" if found["partition"] == "aws-cn" else "amazonaws.com"
    return f"https://{found['name']}-{found['account']}.s3-accesspoint.{found['region']}.{domain}"


def _bucket(url: str, netloc: str) -> tuple[str, dict[str, str]]:
    """The bucket in a host name, and the parameters that follow from the rest of the name."""
    if not netloc:
        raise UsageError(f"{redacted(url)!r} names no bucket", hint=f"write {S3_FORM}")
    access_point = _ACCESS_POINT.fullmatch(netloc)
    if access_point is not None:
        return netloc, {"region": access_point["region"]}
    for pattern, endpoint in _PROVIDERS:
        match = pattern.fullmatch(netloc)
        if match is not None:
            region = match["region"] or ""
            named = {"region": region if region != "s3" else "", "endpoint": endpoint.format(region)}
            return match["bucket"], {name: value for name, value in named.items() if value}
    match = _LOCAL_HOST.fullmatch(netloc)
    if match is not None:
        return match["bucket"], {"endpoint": f"http://{match['server']}"}
    if ":" in netloc or netloc.endswith(_PROVIDER_DOMAINS):
        raise UsageError(
            f"the host of {redacted(url)!r} is not a bucket name", hint=f"give the server as endpoint: {S3_FORM}"
        )
    return netloc, {}


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


_IDLE = "requireContentMD5"
"""Accepted for Litestream's sake: Content-MD5 is sent where the store requires it."""
_NAMES = ("endpoint", "region", "forcePathStyle", *OPTION_NAMES, _IDLE, "sseCustomerKeyMD5")
_PARAMETERS = {form: name for name in _NAMES for form in (name, hyphenated(name))}


def _parameter_hint(name: str) -> str:
    from difflib import get_close_matches

    if name in ("sseCustomerKey", "sse-customer-key"):
        return "a URL must not contain a key: put it in a file and name that as sseCustomerKeyPath"
    close = get_close_matches(name, _PARAMETERS, n=1)
    return f"did you mean {close[0]}?" if close else f"remove it; the parameters are {', '.join(_NAMES)}"


def endpoint_url(endpoint: str) -> str:
    """The endpoint with its scheme: http for this machine and private networks, else https, unless one is given.

    An empty one stays empty. Raises `UsageError`.
    """
    if not endpoint:
        return ""
    if endpoint.partition("://")[0].lower() not in ("http", "https") or "://" not in endpoint:
        if "://" in endpoint:
            raise UsageError("the endpoint is neither http nor https", hint="write endpoint=https://host")
        endpoint = ("http://" if _is_local(endpoint) else "https://") + endpoint
    if "@" in unquote(endpoint):
        hint = "put them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise UsageError("the endpoint contains credentials, which are not allowed in a URL", hint=hint)
    parts = _checked(lambda: urlsplit(endpoint))
    _checked(lambda: parts.port)
    if not parts.hostname or parts.query or parts.fragment:
        raise UsageError("the endpoint names no server", hint="write endpoint=https://host or host:port")
    return endpoint.rstrip("/")


def is_loopback(endpoint: str) -> bool:
    """True if an endpoint without a scheme is this machine. Raises `UsageError` if it is none."""
    host, address = _host(endpoint)
    return host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback)


def _is_local(endpoint: str) -> bool:
    """True for this machine and for the hosts of a private network, which Litestream asks over http."""
    host, address = _host(endpoint)
    is_private = address is not None and any(address in network for network in _PRIVATE)
    return is_loopback(endpoint) or host.endswith(".local") or is_private


_PRIVATE = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))


def _host(endpoint: str) -> tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address | None]:
    """The host of an endpoint without a scheme, and the address if it is one."""
    host = _checked(lambda: urlsplit("//" + endpoint).hostname) or ""
    try:
        return host, ipaddress.ip_address(host)
    except ValueError:
        return host, None


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
