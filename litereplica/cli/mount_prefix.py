"""What `litereplica mount` needs for a prefix: telling it from a replica, and opening its databases.

A URL with LTX files of its own is one database. One without is a prefix if there are objects in directories below it.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from litereplica.errors import LiteReplicaError

if TYPE_CHECKING:
    from litereplica.fuse.options import MountOptions
    from litereplica.ltxstore.store import LTXStore
    from litereplica.replica.database import Replica
    from litereplica.replica.page_pool import PagePool
    from litereplica.replica.prefix import Prefix
    from litereplica.storage.credentials import Credentials

HYDRATE = ("none", "small", "all")
GENERATIONS = "generations"
"""The directory of a backup by Litestream 0.3."""

SMALL_SIZE = 64 * 1024 * 1024
"""Bytes of a database that counts as small: some seconds of a usual connection."""


class IsPrefix(LiteReplicaError):
    """The URL is not that of a replica, and has directories below it."""


class Selection(NamedTuple):
    """What is shown of a prefix, and how long a database stays open that nobody uses."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    park_after_s: float


class MountCommand(click.Command):
    """A command whose option --hydrate may stand without a value, and has a twin --no-hydrate."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite the forms of --hydrate to one."""
        return super().parse_args(ctx, list(_with_values(args)))


def _with_values(args: Sequence[str]) -> list[str]:
    found: list[str] = []
    waiting = list(args)
    while waiting:
        arg = waiting.pop(0)
        if arg == "--":
            return [*found, arg, *waiting]
        if arg == "--hydrate":
            arg = f"--hydrate={waiting.pop(0) if waiting and waiting[0] in HYDRATE else 'all'}"
        found.append("--hydrate=none" if arg == "--no-hydrate" else arg)
    return found


def prefix_of(store: LTXStore, url: str) -> Prefix:
    """Return what is below the root of a store."""
    from litereplica.replica.prefix import Prefix
    from litereplica.storage.url import parse_url

    root = parse_url(url)
    return Prefix(store, url_of=lambda path: str(root.below(path)))


async def require_no_prefix(store: LTXStore, url: str) -> None:
    """Raise `IsPrefix` if there are directories below a root that is no replica, nor a backup by Litestream 0.3."""
    if set(await prefix_of(store, url).names("")) - {GENERATIONS}:
        raise IsPrefix(f"{store.url} is a prefix of databases", hint="mount it with --all")


async def serve_all(
    options: MountOptions,
    selection: Selection,
    *,
    credentials: Credentials | None,
    cache_dir: Path,
    cache_size: int,
    ready: Callable[[], None],
) -> None:
    """Mount every database below the URL until the mount ends. Raises `EnvironmentProblem`."""
    from litereplica.fuse.prefix_mount import PrefixOptions, serve_prefix
    from litereplica.fuse.prefix_names import Patterns
    from litereplica.ltxstore.store import open_ltx_store
    from litereplica.replica.database import MEMORY_SIZE
    from litereplica.replica.page_pool import open_page_pool

    chosen = PrefixOptions(patterns=Patterns(selection.include, selection.exclude), park_after_s=selection.park_after_s)
    store = open_ltx_store(options.url, credentials=credentials)
    try:
        async with open_page_pool(cache_dir, size=cache_size, memory_size=MEMORY_SIZE) as pool:
            prefix = prefix_of(store, options.url)
            opener = _Opener(prefix, pool, cache_dir=cache_dir, read_timeout_s=options.read_timeout_s)
            await serve_prefix(options, prefix, opener.open, prefix_options=chosen, ready=ready)
    finally:
        await store.aclose()


class _Opener:
    """Opens the databases of a prefix, which share a store and cached pages."""

    def __init__(self, prefix: Prefix, pool: PagePool, *, cache_dir: Path, read_timeout_s: float) -> None:
        self._prefix = prefix
        self._pool = pool
        self._cache_dir = cache_dir
        self._read_timeout_s = read_timeout_s

    @asynccontextmanager
    async def open(self, path: str) -> AsyncIterator[Replica]:
        """Open the database at a path. Its newest TXID is remembered in a directory of its own."""
        from litereplica.replica.database import open_replica

        remembered = self._cache_dir / "positions" / hashlib.sha256(path.encode()).hexdigest()[:24]
        remembered.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with open_replica(
            self._prefix.database(path), cache_dir=remembered, pool=self._pool, read_timeout_s=self._read_timeout_s
        ) as replica:
            yield replica
