"""Options of an S3 replica beside its place: how objects are sent, stored and encrypted. None of them is a secret.

They are parameters of the URL and keys of the configuration file under Litestream's names, in camel case or with
hyphens. Two URLs that differ only in them name the same replica.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from litereplica.errors import UsageError

MIN_PART_BYTES = 5 << 20
"""S3's lower limit for each part but the last."""
MAX_PART_BYTES = 5 << 30
MAX_CONCURRENCY = 64

ALGORITHM = "AES256"
"""The only algorithm of SSE-C."""

_BYTES_PER_UNIT = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "kib": 2**10,
    "ki": 2**10,
    "m": 10**6,
    "mb": 10**6,
    "mib": 2**20,
    "mi": 2**20,
    "g": 10**9,
    "gb": 10**9,
    "gib": 2**30,
    "gi": 2**30,
}
"""Litestream's units (go-humanize's), in lower case."""
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class S3Options:
    """Options of an S3 replica. `part_bytes` and `concurrency` are those of uploads in parts; 0: the default.

    `skip_verify`: the server's certificate is not checked. `sign_payload`: the content of a put is signed.
    `sse_customer_key_path` names a file with the base64 text of an SSE-C key.
    """

    skip_verify: bool = False
    sign_payload: bool = True
    storage_class: str = ""
    part_bytes: int = 0
    concurrency: int = 0
    sse_kms_key_id: str = ""
    sse_customer_key_path: str = ""

    def parameters(self) -> dict[str, str]:
        """The options that are not the default, as parameters of a URL."""
        found = {}
        for name, option in _OPTIONS.items():
            value = getattr(self, option.field)
            if value != _DEFAULTS[option.field]:
                found[name] = str(value).lower() if isinstance(value, bool) else str(value)
        return found


def parse_options(parameters: Mapping[str, str]) -> S3Options:
    """Parse the parameters of a URL, by their names in camel case. Others are ignored. Raises `UsageError`."""
    algorithm = parameters.get("sseCustomerAlgorithm", ALGORITHM)
    if algorithm != ALGORITHM:
        raise UsageError("sse-customer-algorithm is not AES256, the only one", hint="write AES256, or remove it")
    values: dict[str, Any] = {
        option.field: option.parse(name, parameters[name]) for name, option in _OPTIONS.items() if name in parameters
    }
    options = S3Options(**values)
    if options.sse_kms_key_id and options.sse_customer_key_path:
        raise UsageError("SSE-KMS and SSE-C exclude each other", hint="leave one of the keys")
    return options


def parse_boolean(name: str, text: str) -> bool:
    """Parse a boolean parameter as Litestream does. Raises `UsageError`."""
    match text.lower():
        case "true" | "1" | "t" | "yes":
            return True
        case "false" | "0" | "f" | "no":
            return False
    raise UsageError(f"the URL parameter {name!r} is neither true nor false", hint="write true or false")


def _part_bytes(name: str, text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    unit = _BYTES_PER_UNIT.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise UsageError("part-size is not a size", hint="write for instance 16MiB")
    size = int(Fraction(match[1]) * unit)
    if not MIN_PART_BYTES <= size <= MAX_PART_BYTES:
        raise UsageError("part-size is not between 5 MiB and 5 GiB, S3's limits", hint="write for instance 16MiB")
    return size


def _concurrency(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_CONCURRENCY:
        raise UsageError(f"concurrency is not a number from 1 to {MAX_CONCURRENCY}", hint="write for instance 5")
    return int(text)


def _text(name: str, text: str) -> str:
    return text


@dataclass(frozen=True, slots=True)
class _Option:
    field: str
    parse: Callable[[str, str], bool | int | str]


_OPTIONS = {
    "skipVerify": _Option("skip_verify", parse_boolean),
    "signPayload": _Option("sign_payload", parse_boolean),
    "storageClass": _Option("storage_class", _text),
    "partSize": _Option("part_bytes", _part_bytes),
    "concurrency": _Option("concurrency", _concurrency),
    "sseKmsKeyId": _Option("sse_kms_key_id", _text),
    "sseCustomerKeyPath": _Option("sse_customer_key_path", _text),
}
_DEFAULTS = {each.name: each.default for each in fields(S3Options)}

OPTION_NAMES = (*_OPTIONS, "sseCustomerAlgorithm")
"""The names of the parameters, in camel case."""
BOOLEAN_NAMES = tuple(name for name, option in _OPTIONS.items() if option.parse is parse_boolean)


def hyphenated(name: str) -> str:
    """The name of a parameter as a key of the configuration file: `storageClass` is `storage-class`."""
    return re.sub("[A-Z]+", lambda match: f"-{match[0].lower()}", name)
