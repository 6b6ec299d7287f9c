"""Changes of files in local directories, as the kernel tells them (inotify), so that nobody has to look all the time.

Events are a hint and no proof: a file system of the network has none for what other machines do, a watch may be refused
(`fs.inotify.max_user_watches`), a queue may overflow. Whoever uses them looks now and then all the same, and reports
what it finds without having been told (`Changes.missed`); after some of that, `is_sure` is False for good.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import trio
from inotify_simple import INotify, flags

log = logging.getLogger(__name__)

WAKE_PAUSE_S = 0.002
"""The kernel's queue is read at most this often: it merges what happens meanwhile, in a directory with other busy
files, too."""

MISSES = 3
"""Changes in a row that came without an event, until events are not relied on."""

Matters: TypeAlias = Callable[[str], bool]
"""Whether somebody wants to know of the file with this name."""

_MASK = flags.MODIFY | flags.CREATE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE | flags.ONLYDIR
_ENDED = flags.IGNORED | flags.UNMOUNT


class Changes:
    """What has changed in a directory since it was asked last: at first, something may have.

    `is_sure`: changes are told, as far as is known. Obtain it from `FileEvents.watching`; one made otherwise is told of
    nothing.
    """

    def __init__(self, matters: Matters = lambda name: True) -> None:
        self.is_sure = False
        self._matters = matters
        self._changed = trio.Event()
        self._misses = 0

    def take(self) -> bool:
        """Return whether something has changed since the last call."""
        changed = self._changed.is_set()
        if changed:
            self._changed = trio.Event()
            self._misses = 0
        return changed

    def missed(self) -> None:
        """Report a change that was found, and of which nobody had told."""
        self._misses += 1
        if self._misses >= MISSES:
            self.is_sure = False

    def wake(self) -> None:
        """Let who waits go on."""
        self._changed.set()

    async def wait(self) -> None:
        """Return when something has changed since the last `take`."""
        await self._changed.wait()

    def tell(self, name: str) -> None:
        """Note a change of a name in the directory; of an unknown one if it is empty."""
        if not name or self._matters(name):
            self._changed.set()


class FileEvents:
    """Watches directories for the users of one trio run. They share one inotify descriptor, of which a user has few."""

    def __init__(self) -> None:
        self._inotify: INotify | None = None
        self._users: dict[int, list[Changes]] = {}  # by watch
        self._adding = 0
        self._reading = trio.CancelScope()

    @asynccontextmanager
    async def watching(self, directory: Path, matters: Matters) -> AsyncIterator[Changes]:
        """Tell during the block of changes of files in `directory` whose names matter.

        A directory that cannot be watched has no events: `is_sure` is False.
        """
        changes = Changes(matters)
        watch = await self._add(directory, changes)
        try:
            yield changes
        finally:
            if watch is not None:
                self._remove(watch, changes)

    async def _add(self, directory: Path, changes: Changes) -> int | None:
        self._adding += 1
        try:
            inotify = self._open()
            watch: int = await trio.to_thread.run_sync(inotify.add_watch, directory, _MASK, abandon_on_cancel=True)
        except OSError as exc:
            log.debug("%s cannot be watched: %s", directory, exc.strerror)
            return None
        else:
            changes.is_sure = True
            changes.wake()  # something may have changed just before
            self._users.setdefault(watch, []).append(changes)
            return watch
        finally:
            self._adding -= 1
            self._close_if_unused()

    def _open(self) -> INotify:
        if self._inotify is None:
            self._inotify = INotify(nonblocking=True)
            self._reading = trio.CancelScope()
            trio.lowlevel.spawn_system_task(self._read, self._inotify, self._reading)
        return self._inotify

    def _remove(self, watch: int, changes: Changes) -> None:
        users = self._users.get(watch, [])
        if changes in users:
            users.remove(changes)
            if not users:
                self._forget(watch)
        self._close_if_unused()

    def _forget(self, watch: int) -> None:
        del self._users[watch]
        if self._inotify is not None:
            try:
                self._inotify.rm_watch(watch)
            except OSError:  # the directory has gone, and its watch with it
                log.debug("watch %d had ended", watch)

    def _close_if_unused(self) -> None:
        if self._inotify is not None and not (self._users or self._adding):
            self._reading.cancel()
            self._inotify = None

    async def _read(self, inotify: INotify, scope: trio.CancelScope) -> None:
        with inotify, scope:  # closed only when nobody waits for it
            while True:
                await trio.lowlevel.wait_readable(inotify)
                for event in inotify.read(timeout=0):
                    self._tell(event.wd, event.mask, event.name)
                await trio.sleep(WAKE_PAUSE_S)

    def _tell(self, watch: int, mask: int, name: str) -> None:
        if mask & flags.Q_OVERFLOW:
            for users in self._users.values():
                for changes in users:
                    changes.wake()
            return
        for changes in self._users.get(watch, ()):
            changes.tell(name)
            if mask & _ENDED:
                changes.is_sure = False
                changes.wake()
