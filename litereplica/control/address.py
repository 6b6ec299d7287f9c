"""The address of a listener on TCP, and its token: what the command line and a configuration say of it.

parse_address   reads `9090`, `:9090`, `localhost:9090`, `[::1]:9090`
read_token      reads the token from a file or the environment
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from litereplica.errors import UsageError

LOOPBACK = "localhost"
TOKEN_VARIABLE = "LITEREPLICA_METRICS_TOKEN"
MIN_TOKEN = 16
MAX_TOKEN = 1024
"""Characters of a token."""

_TOKEN_HINT = f"write {MIN_TOKEN} to {MAX_TOKEN} characters, for instance by 'openssl rand -hex 32'"
_ADDRESS_HINT = "write for instance 9090, localhost:9090 or :9090"


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port; an empty host stands for all interfaces."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """True if only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == LOOPBACK

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Listen:
    """Where a daemon serves metrics, and the token that requests need; an empty one lets all in."""

    address: Address
    token: str = field(default="", repr=False)


def parse_address(text: str) -> Address:
    """Return the address in a text; a port alone is on loopback. Raises `UsageError`."""
    match = re.fullmatch(r"(?:(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/@]*)):)?([0-9]{1,5})", text.strip(), re.ASCII)
    if match is None or int(match[3]) > 0xFFFF:
        raise UsageError(f"{text!r} is not an address to listen on", hint=_ADDRESS_HINT)
    host = match[1] or match[2]
    return Address(LOOPBACK if host is None else host.lower(), int(match[3]))


def read_token(file: Path | None, environment: Mapping[str, str]) -> str:
    """Return the token in a file, else that in the environment, else an empty text. Raises `UsageError`."""
    if file is None:
        token, where = environment.get(TOKEN_VARIABLE, "").strip(), f"the variable {TOKEN_VARIABLE}"
        if not token:
            return ""
    else:
        token, where = _content(file), str(file)
    if not MIN_TOKEN <= len(token) <= MAX_TOKEN or re.search(r"[^!-~]", token):
        raise UsageError(f"{where} has no token", hint=_TOKEN_HINT)
    return token


def _content(file: Path) -> str:
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise UsageError(f"{file} is not a regular file", hint="name a file with a token")
            return stream.read(2 * MAX_TOKEN).decode("utf-8", "replace").strip()
    except OSError as exc:
        raise UsageError(f"cannot read the token {file}: {exc.strerror}", hint="name a readable file") from exc
