"""The environment variables by which a service manager such as systemd lets one process speak to it."""

from __future__ import annotations

from collections.abc import Mapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def without_manager(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for another process, which must not speak for this one."""
    return {name: value for name, value in environment.items() if name not in VARIABLES}
