"""The listener on TCP: what is an address, what is a token, and which requests are answered."""

from __future__ import annotations

import base64
from http import HTTPStatus
from pathlib import Path

import pytest

from litereplica.control.address import Address, Listen, parse_address, read_token
from litereplica.control.http import Request
from litereplica.control.tcp import Guard, listen
from litereplica.errors import EnvironmentProblem, UsageError

TOKEN = "s3cret-s3cret-s3cret"


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback", "shown"),
    [
        ("9090", "localhost", 9090, True, "localhost:9090"),
        (":9090", "", 9090, False, ":9090"),
        ("localhost:0", "localhost", 0, True, "localhost:0"),
        ("127.0.0.2:9090", "127.0.0.2", 9090, True, "127.0.0.2:9090"),
        ("[::1]:9090", "::1", 9090, True, "[::1]:9090"),
        ("0.0.0.0:80", "0.0.0.0", 80, False, "0.0.0.0:80"),
        ("Db.Example:65535", "db.example", 65535, False, "db.example:65535"),
    ],
)
def test_addresses(text: str, host: str, port: int, loopback: bool, shown: str) -> None:
    found = parse_address(text)
    assert (found, found.is_loopback, str(found)) == (Address(host, port), loopback, shown)


@pytest.mark.parametrize(
    "text", ["", ":", "x", "x:", "x:y", "::1:9090", "localhost:65536", "http://x:1", "a b:1", "[x]:1", "x:１", "[::1]9"]
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="is not an address to listen on: write for instance 9090"):
        parse_address(text)


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    (tmp_path / "link").symlink_to(file)  # as secrets are mounted
    file.write_text(f" {TOKEN}\n")
    other = {"LITEREPLICA_METRICS_TOKEN": TOKEN[::-1]}
    assert read_token(tmp_path / "link", other) == TOKEN
    assert read_token(None, other) == TOKEN[::-1]
    assert read_token(None, {}) == read_token(None, {"LITEREPLICA_METRICS_TOKEN": " "}) == ""
    for content in (b"", b"short", b"x" * 2000, b"with a space in between", b"\xff" * 20):
        file.write_bytes(content)
        with pytest.raises(UsageError, match="has no token: write 16 to 1024 characters"):
            read_token(file, other)
    for bad, message in [(tmp_path, "is not a regular file|Is a directory"), (tmp_path / "none", "No such file")]:
        with pytest.raises(UsageError, match=message):
            read_token(bad, {})
    assert TOKEN not in repr(Listen(parse_address("1"), TOKEN))


def refused(guard: Guard, **headers: str) -> int:
    """The status of the refusal; 0 if there is none."""
    response = guard(
        Request(method="GET", path="/", headers={name.replace("_", "-"): headers[name] for name in headers})
    )
    return 0 if response is None else int(response.status)


def test_without_a_token_only_a_host_of_this_machine_is_answered() -> None:
    guard = Guard(Listen(Address("db.example", 9090)), ("Primary",))
    for host in ("127.0.0.1:9090", "10.1.2.3", "[::1]:9090", "LOCALHOST:1", "db.example.", "primary:9090"):
        assert refused(guard, host=host) == 0, host
    for host in ("", "evil.example", "primary.evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "[x]",
                 "a:b:c", "127.0.0.1@evil", "2130706433", "0x7f000001", "[::1]evil", "127.0.0.1 x"):  # fmt: skip
        assert refused(guard, host=host) == HTTPStatus.MISDIRECTED_REQUEST, host
    ours = {"host": "localhost", "sec_fetch_site": "cross-site"}
    assert refused(guard, **ours, sec_fetch_mode="no-cors") == HTTPStatus.FORBIDDEN
    assert refused(guard, **ours, sec_fetch_mode="navigate") == 0
    assert refused(guard, host="localhost", sec_fetch_site="same-origin", sec_fetch_mode="cors") == 0


def test_with_a_token_every_request_needs_it_whatever_its_host() -> None:
    guard = Guard(Listen(Address("", 9090), TOKEN), ())
    basic = base64.b64encode(f"anyone:{TOKEN}".encode()).decode()
    for given in (f"Bearer {TOKEN}", f"bearer  {TOKEN}", f"Basic {basic}"):
        assert refused(guard, host="primary.internal", authorization=given) == 0, given
    for wrong in ("", TOKEN, "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Basic %", "Basic eA==",
                  "Bearer \xff", f"Basic {base64.b64encode(TOKEN.encode()).decode()}", f"Digest {TOKEN}"):  # fmt: skip
        response = guard(Request(method="GET", path="/", headers={"host": "localhost", "authorization": wrong}))
        assert response is not None
        assert response.status == HTTPStatus.UNAUTHORIZED, wrong
        assert ("WWW-Authenticate", 'Basic realm="litereplica", charset="UTF-8"') in response.headers


def test_loopback_has_one_port_and_an_address_in_use_is_an_error() -> None:
    sockets = listen(parse_address("localhost:0"))
    try:
        ports = {each.getsockname()[1] for each in sockets}
        assert len(ports) == 1
        assert {each.getsockname()[0] for each in sockets} <= {"127.0.0.1", "::1"}
        with pytest.raises(EnvironmentProblem, match=r"cannot listen on localhost:.*: Address already in use"):
            listen(Address("localhost", ports.pop()))
    finally:
        for each in sockets:
            each.close()
    with pytest.raises(EnvironmentProblem, match=r"choose another address|name a host that exists"):
        listen(Address("192.0.2.1", 9))
