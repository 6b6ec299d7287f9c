"""Runs what `litereplica mount` mounts, in the process that becomes the daemon.

One database, live or at a point, or every database below a prefix: if the user does not say which, the store does. A
store that fails, or has nothing yet, is asked again for as long as `--wait` says.

FUSE, and all that presents a replica through it, is imported while the store is asked for the replica.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TypeVar

import trio

from litereplica.cli.find_point import resolve
from litereplica.cli.hangup import read_anew_on_hangup
from litereplica.cli.mount_plan import MountPlan
from litereplica.cli.mount_prefix import SMALL_SIZE, IsPrefix, prefix_of, require_no_prefix, serve_all
from litereplica.cli.nothing_there import explained
from litereplica.cli.replica_of import ReplicaOf
from litereplica.concurrent import open_nursery
from litereplica.errors import NoReplica, StorageError
from litereplica.fuse.options import MountOptions
from litereplica.ltxstore.store import open_ltx_store
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.malloc_tuning import tune_allocator

log = logging.getLogger(__name__)

WAIT_INTERVAL_S = 1.0
"""Between attempts to open the replica with `--wait`."""

T = TypeVar("T")


def serve_mount(plan: MountPlan, ready: Callable[[str], None], *, warn: Callable[[str], None]) -> None:
    """Mount, call `ready` with what is mounted, and serve until the mount ends. Blocks.

    The garbage collector is off until then: a start leaves no garbage worth collecting.
    """
    gc.disable()

    def started(shown: str) -> None:
        gc.freeze()
        gc.enable()
        ready(shown)

    tune_allocator()
    trio.run(read_anew_on_hangup, lambda: run_mount(plan, started, warn=warn))


async def run_mount(plan: MountPlan, ready: Callable[[str], None], *, warn: Callable[[str], None]) -> None:
    """Mount, call `ready` with what is mounted, and serve until the mount ends."""
    options = _hydrating(plan.options, plan.hydrate or "all")
    if not plan.every:
        opening = _opened_within(plan.wait_s, partial(_opened, plan, options, warn))
        server = _Importing("fuse.mount" if plan.point.is_latest else "fuse.static_mount")
        try:
            async with open_nursery() as nursery:
                nursery.start_soon(server.run)
                async with opening as replica:
                    serve = (await server.module()).serve
                    await serve(options, nullcontext(replica), lambda: ready(str(options.path / options.name)))
            return
        except IsPrefix:
            log.info("%s is a prefix: mounting every database below it", options.url)
    else:
        await _retried(plan.wait_s, partial(_warn_if_empty, plan.replica, warn))
    await serve_all(
        replace(_hydrating(plan.options, plan.hydrate or "small"), name=""),
        plan.selection,
        credentials=plan.replica.credentials,
        cache_dir=plan.cache,
        cache_size=plan.cache_size,
        ready=lambda: ready(str(options.path)),
    )


class _Importing:
    """A module of ours that `run` imports in a thread, while the task that needs it does something else."""

    def __init__(self, name: str) -> None:
        self._name = f"litereplica.{name}"
        self._done = trio.Event()
        self._module: ModuleType

    async def run(self) -> None:
        self._module = await trio.to_thread.run_sync(import_module, self._name, abandon_on_cancel=True)
        self._done.set()

    async def module(self) -> ModuleType:
        await self._done.wait()
        return self._module


def _hydrating(options: MountOptions, policy: str) -> MountOptions:
    return replace(options, hydrate=policy != "none", hydrate_limit=SMALL_SIZE if policy == "small" else math.inf)


async def _warn_if_empty(of: ReplicaOf, warn: Callable[[str], None]) -> None:
    store = open_ltx_store(of.url, credentials=of.credentials)
    try:
        if not await prefix_of(store, of.url).names(""):
            warn(f"there is nothing below {store.url} yet")
    finally:
        await store.aclose()


@asynccontextmanager
async def _opened_within(
    limit_s: float, opening: Callable[[], AbstractAsyncContextManager[Replica]]
) -> AsyncIterator[Replica]:
    """Enter the context of `opening()`, retried for `limit_s` while the store fails or has no replica."""
    async with AsyncExitStack() as stack:
        yield await _retried(limit_s, lambda: stack.enter_async_context(opening()))


async def _retried(limit_s: float, attempt: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `attempt`, retried for `limit_s` while the store fails or has no replica."""
    deadline = trio.current_time() + limit_s
    logged = ""
    while True:
        try:
            return await attempt()
        except (StorageError, NoReplica) as exc:
            if trio.current_time() >= deadline:
                raise
            if str(exc) != logged:
                logged = str(exc)
                log.warning("retrying: %s", logged)
            await trio.sleep(WAIT_INTERVAL_S)


@asynccontextmanager
async def _opened(plan: MountPlan, options: MountOptions, warn: Callable[[str], None]) -> AsyncIterator[Replica]:
    store = open_ltx_store(plan.replica.url, credentials=plan.replica.credentials)
    try:
        at = await resolve(store, plan.point, warn=warn)
        async with AsyncExitStack() as stack:
            opening = open_replica(
                store,
                cache_dir=plan.cache,
                cache_size=plan.cache_size,
                read_timeout_s=options.read_timeout_s,
                at=at,
            )
            try:
                replica = await stack.enter_async_context(opening)
            except NoReplica as exc:
                if plan.every is None:
                    await require_no_prefix(store, options.url)
                raise await explained(store, exc) from exc
            yield replica
    finally:
        await store.aclose()
