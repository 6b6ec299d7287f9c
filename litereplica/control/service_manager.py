"""Tells a service manager such as systemd when this daemon is ready, what it does, and that it is alive: sd_notify(3).

A message is a datagram of `NAME=value` lines to the socket that `NOTIFY_SOCKET` names; without this variable nothing is
sent. The protocol is that small and is promised to stay, so there is no library for it here.

The watchdog of a unit (`WatchdogSec=`) ends a daemon that has not sent `WATCHDOG=1` in time. It is sent by a task of
the event loop, which also serves the mount or publishes: if the loop hangs, it stays away.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import trio

STATUS_INTERVAL_S = 10.0
"""Between looks at the status without a watchdog; it is sent if it has changed."""


def ready(status: Callable[[], str] | None = None) -> None:
    """Say that the daemon serves, or has read its settings again; `status` is asked for if somebody listens."""
    if _address():
        tell(READY="1", **({} if status is None else {"STATUS": status()}))


def reloading() -> None:
    """Say that the settings are read again; `ready` must follow."""
    tell(RELOADING="1", MONOTONIC_USEC=str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000))


def stopping() -> None:
    """Say that the daemon ends."""
    tell(STOPPING="1", STATUS="ending")


@asynccontextmanager
async def reporting(status: Callable[[], str]) -> AsyncIterator[None]:
    """During the block, send the status, one line, when it changes, and what the watchdog waits for.

    Without a service manager nothing is asked for.
    """
    if not _address():
        yield
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_report, status)
        yield
        nursery.cancel_scope.cancel()


async def _report(status: Callable[[], str]) -> None:
    limit_s = watchdog_s(os.environ)
    sent = ""
    while True:
        text = status()
        fields = {"WATCHDOG": "1"} if limit_s is not None else {}
        if text != sent:
            fields["STATUS"] = sent = text
        tell(**fields)
        await trio.sleep(min(STATUS_INTERVAL_S, (limit_s or STATUS_INTERVAL_S) / 2))


def watchdog_s(environment: Mapping[str, str]) -> float | None:
    """The time limit of the watchdog in seconds; None if there is none for this process."""
    limit_us, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(os.getpid()))
    return int(limit_us) / 1e6 if limit_us.isdecimal() and int(limit_us) and pid == str(os.getpid()) else None


def tell(**fields: str) -> None:
    """Send fields to the service manager, if there is one. One that does not listen is no error."""
    address = _address()
    if not fields or not address:
        return
    text = "\n".join(f"{name}={' '.join(value.split())}" for name, value in fields.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
        try:
            sender.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
            sender.send(text.encode(errors="replace"))
        except OSError:
            return


def _address() -> str:
    """Return the socket of the service manager; empty if there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    return address if address[:1] in ("/", "@") else ""
