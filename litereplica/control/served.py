"""The sockets of this process: the one in the registry, and the one that the configuration names."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from litereplica.control.http import Route, anybody, own_user, serve
from litereplica.control.sockets import default_path, listening, own_directory
from litereplica.errors import EnvironmentProblem

log = logging.getLogger(__name__)

PRIVATE_MODE = 0o600


@asynccontextmanager
async def serving(
    routes: Sequence[Route], path: Path | None = None, *, enabled: bool = True, mode: int = PRIVATE_MODE
) -> AsyncIterator[None]:
    """Answer requests by `routes` during the block, on this process's socket in the registry, and on one at `path`.

    The latter gets `mode`, and answers whomever that admits. Without `enabled`, there is no socket. A socket that
    cannot be made in the registry is logged; raises `EnvironmentProblem` for the one at `path`.
    """
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            if enabled:
                try:
                    registered = default_path(own_directory(os.environ, uid=os.geteuid()))
                    nursery.start_soon(serve, stack.enter_context(listening(registered, registered=True)), routes)
                except EnvironmentProblem as exc:
                    log.warning("'litereplica status' will not find this process: %s", exc)
                if path is not None:
                    named = stack.enter_context(listening(path, registered=False, mode=mode))
                    may_ask = own_user if mode == PRIVATE_MODE else anybody
                    nursery.start_soon(partial(serve, named, routes, may_ask=may_ask))
            yield
            nursery.cancel_scope.cancel()
