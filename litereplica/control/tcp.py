"""A listener on TCP: its sockets, and which requests it answers. docs/design/metrics.md has the reasons."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import re
import socket
from collections.abc import Sequence
from http import HTTPStatus

from litereplica.control.address import LOOPBACK, Address, Listen
from litereplica.control.http import TEXT_TYPE, Request, Response
from litereplica.control.sockets import BACKLOG
from litereplica.errors import EnvironmentProblem


def listen(address: Address) -> list[socket.socket]:
    """Return listening sockets at an address, one for each family of IP. Blocks.

    With port 0 the system chooses one, the same for all. Raises `EnvironmentProblem`.
    """
    found: list[socket.socket] = []
    port, error = address.port, ""
    for family, host in _hosts(address):
        one = socket.socket(family, socket.SOCK_STREAM)
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((host, port))
            one.listen(BACKLOG)
        except OSError as exc:
            one.close()
            error = exc.strerror or str(exc)
            continue
        port = one.getsockname()[1]
        found.append(one)
    if not found:
        raise EnvironmentProblem(f"cannot listen on {address}: {error}", hint="choose another address")
    return found


def _hosts(address: Address) -> list[tuple[int, str]]:
    """The IP addresses to bind, with their families, IPv4 first. Raises `EnvironmentProblem`."""
    try:
        found = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise EnvironmentProblem(f"cannot listen on {address}: {exc.strerror}", hint="name a host that exists") from exc
    return sorted({(family, str(where[0])) for family, _, _, _, where in found})


class Guard:
    """Decides which requests on TCP are answered: those with the token; without one, those that name this machine.

    `names` are the names of this machine. The check of `Host` keeps away pages that a browser here shows: under a name
    of their own that leads here they could read the answers.
    """

    def __init__(self, listen: Listen, names: tuple[str, ...]) -> None:
        self._token = listen.token.encode()
        self._names = {LOOPBACK, listen.address.host, *(name.lower() for name in names)} - {""}

    def __call__(self, request: Request) -> Response | None:
        """Return the answer to a request that is refused, else None."""
        if self._token:
            if hmac.compare_digest(_token_of(request), self._token):
                return None
            # only a page that is opened asks the user: what a script fetches would hang behind the question
            asks = request.headers.get("sec-fetch-mode", "navigate") == "navigate"
            challenge = [("WWW-Authenticate", 'Basic realm="litereplica", charset="UTF-8"')] if asks else []
            return _refusal(HTTPStatus.UNAUTHORIZED, "a token is needed, as a password or as a bearer", challenge)
        if not self._is_ours(request.headers.get("host", "")):
            return _refusal(
                HTTPStatus.MISDIRECTED_REQUEST, "unknown host: use an IP address, or give this listener a token"
            )
        if (
            request.headers.get("sec-fetch-site") == "cross-site"
            and request.headers.get("sec-fetch-mode") != "navigate"
        ):
            return _refusal(HTTPStatus.FORBIDDEN, "asked for by a page of another site")
        return None

    def _is_ours(self, host: str) -> bool:
        match = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?|([^:]*)(?::[0-9]+)?", host, re.ASCII)
        if match is None:
            return False
        name = (match[1] or match[2] or "").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.removesuffix(".") in self._names
        return True


def _token_of(request: Request) -> bytes:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(given, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _refusal(status: HTTPStatus, text: str, headers: Sequence[tuple[str, str]] = ()) -> Response:
    return Response(status=status, content_type=TEXT_TYPE, body=f"{text}\n".encode(), headers=headers)
