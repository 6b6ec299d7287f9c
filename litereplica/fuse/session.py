"""The FUSE session of one mount, whatever is mounted: from its beginning to its end.

Start: mount → let in who is to be let in → ready. End: let go of what keeps the mount busy → unmount → the session ends
by itself. What is done in between is the subclasses' (`mount.py`, `static_mount.py`).

Signals: SIGTERM, SIGINT and SIGQUIT end the mount within `STOP_LIMIT_S`, with clients inside and in spite of errors.
SIGUSR1 ends it only if nobody has a file open. SIGHUP is the caller's (`cli/hangup.py`).

When someone else detaches the mount, the daemon serves those who are inside, and further mounts of the same file system
in other places, until they are gone, and exits.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from litereplica.control import service_manager
from litereplica.control.protocol import WaitFor
from litereplica.control.served import serving
from litereplica.errors import DatabaseNotFound, EnvironmentProblem
from litereplica.fuse import mountpoint
from litereplica.fuse.control import MountControl
from litereplica.fuse.kernel_limits import MAX_BACKGROUND, raise_max_background, raise_read_ahead
from litereplica.fuse.names import STATUS_NAME
from litereplica.fuse.operations import Operations
from litereplica.fuse.options import MountOptions
from litereplica.fuse.shielded import ShieldedBlocks
from litereplica.fuse.state import MountState
from litereplica.fuse.status_database import Row

log = logging.getLogger(__name__)

STOP_LIMIT_S = 4.0
"""Time limit for ending after a signal: an init system kills processes that do not end."""

GRACE_S = 0.5
"""How long an orderly end may take after unmounting; the files on disk are valid at any moment."""

MOUNT_CHECK_S = 10.0
"""How often the mount table is read at least; the kernel also reports its changes."""

COPY_CHECK_S = 1.0
"""How often a daemon whose mount was detached looks whether the file system is still mounted elsewhere."""

RELEASE_LIMIT_S = 0.5
"""How long to wait for RELEASE, which the kernel sends after the client's close() has returned."""

MAX_TASKS = 2 * MAX_BACKGROUND
"""Requests that are worked on at once."""

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_IGNORED = (signal.SIGUSR2, signal.SIGALRM)
"""Signals whose default action would end the process and leave a dead mount."""


class FuseSession:
    """The session, and the tasks around it. Subclasses have `_serve`, and `_close_own` if they have descriptors."""

    def __init__(
        self, options: MountOptions, operations: Operations, *, shielded: ShieldedBlocks | None = None
    ) -> None:
        self._options = options
        self._operations = operations
        self._shielded = shielded or ShieldedBlocks()
        self._following = trio.CancelScope()
        self._stopped = trio.Event()  # following has ended
        self._detached = trio.Event()
        self._mount: mountpoint.Mount | None = None
        log_file = options.log_file
        self._control = MountControl(self, log_file=None if log_file is None else str(log_file))
        self._tasks: trio.Nursery

    def state(self) -> MountState:
        """Return the state of this moment."""
        raise NotImplementedError

    def records(self) -> list[dict[str, Any]]:
        """Return what is mounted, as JSON objects."""
        return [self.state().record()]

    async def points(self, path: str) -> Sequence[Row]:
        """Return the newest points in time of the database at `path`, ascending; none of a mount that is one."""
        return ()

    def state_of(self, path: Path) -> MountState | None:
        """Return the state of the database that `path` names; None if it is not open."""
        return self.state()

    async def reach(self, path: Path, wanted: WaitFor) -> MountState:
        """Return the state when transactions of a database see what is wanted if they begin now. Waits without limit.

        Raises `DatabaseNotFound` if `path` leads to something else in this mount, such as a past state.
        """
        place = self._options.path
        if path.is_relative_to(place) and path not in (place, place / self._options.name):
            raise DatabaseNotFound(f"{path} is not the live database of this mount", hint=f"name {place}")
        await self._reach(wanted)
        return self.state()

    async def _reach(self, wanted: WaitFor) -> None:
        """Return when transactions that begin now see what is wanted."""
        raise NotImplementedError

    async def _serve(self, ready: Callable[[], None]) -> None:
        """Let clients in, call `ready`, and keep the mount current until cancelled."""
        raise NotImplementedError

    async def run(self, ready: Callable[[], None]) -> None:
        """Mount, and serve until the mount ends. Raises `EnvironmentProblem`.

        A signal that comes while something is being mounted is handled once it is.
        """
        with trio.open_signal_receiver(*_ENDING, *_IGNORED, signal.SIGUSR1) as signals:
            await self._run(signals, ready)

    async def _run(self, signals: AsyncIterator[int], ready: Callable[[], None]) -> None:
        path = self._options.path
        below = mountpoint.open_below(path)
        try:
            self._init_fuse()
        except BaseException:
            os.close(below)
            raise
        mountpoint.forbid_writing(below)
        self._mount = mountpoint.mount_at(path)
        if self._mount is not None:
            raise_max_background(self._mount)
            raise_read_ahead(self._mount)
        mounted = True
        try:
            reporting = service_manager.reporting(self._status_line)
            async with self._serving(), reporting, trio.open_nursery() as self._tasks:
                self._tasks.start_soon(self._watch_signals, signals)
                await self._tasks.start(self._watch_mount)
                self._tasks.start_soon(self._start_following, ready)
                await pyfuse3.main(max_tasks=MAX_TASKS)
                mounted = False
                self._shielded.give_up()
                self._tasks.cancel_scope.cancel()
        finally:
            if mounted:
                with suppress(EnvironmentProblem):
                    mountpoint.unmount(path, lazy=True)
            pyfuse3.close(unmount=False)
            self._close_own()  # not before: nobody would answer the requests that this makes
        log.info("unmounted %s", path)

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        """Answer on the control socket during the block, and on TCP if there is an address."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(serving(self._control.routes()))
            if self._options.listen is not None:
                from litereplica.web.served import serving_tcp  # takes time to import, and few want it

                await stack.enter_async_context(serving_tcp(self._options.listen, self._control))
            yield

    def _init_fuse(self) -> None:
        source = mountpoint.option_value(self._options.url)
        fuse_options = {"nosuid", "nodev", "noatime", f"fsname={source}", "subtype=litereplica"}
        if self._options.allow_other:
            fuse_options.add("allow_other")
        try:
            pyfuse3.init(self._operations, str(self._options.path), fuse_options)
        except RuntimeError as exc:
            hint = "see the line of fusermount3 above"
            if self._options.allow_other and os.geteuid() != 0:
                hint = "--allow-other needs the line 'user_allow_other' in /etc/fuse.conf"
            raise EnvironmentProblem(f"cannot mount at {self._options.path}: {exc}", hint=hint) from exc

    # --- serving ---------------------------------------------------------------------------------

    def _status_line(self) -> str:
        """What a service manager shows of this mount."""
        state = self.state()
        lag = f", {state.lag_ms / 1000:.0f} s behind" if state.lag_ms >= 1000 else ""
        return f"{state.state} at TXID {state.txid:016x}{lag}" + (f": {state.error}" if state.error else "")

    async def _start_following(self, ready: Callable[[], None]) -> None:
        def started() -> None:
            service_manager.ready(self._status_line)
            ready()

        try:
            with self._following:
                await self._serve(started)
        finally:
            self._stopped.set()

    async def _stop_following(self) -> None:
        """Let go of what keeps the mount busy, once what is being applied is applied."""
        self._operations.close_to_others()
        self._following.cancel()
        await self._stopped.wait()
        await trio.to_thread.run_sync(self._close_own)

    async def _resume_following(self) -> None:
        await self._stopped.wait()
        self._following, self._stopped = trio.CancelScope(), trio.Event()
        await self._start_following(lambda: None)

    def _flush_once(self) -> None:
        """Open and close a file of the mount: the answer to that FLUSH makes the kernel send no other. Blocks.

        Without it, a child of this process that begins by closing inherited descriptors would wait for our answer,
        while we wait for the child to begin.
        """
        os.close(os.open(self._options.path / STATUS_NAME, os.O_RDONLY | os.O_CLOEXEC))

    def _close_own(self) -> None:
        """Close the daemon's descriptors on its own files. Called in a thread."""

    # --- the end ---------------------------------------------------------------------------------

    async def _watch_signals(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number in _ENDING:
                await self.stop(gently=False)
            elif number == signal.SIGUSR1:
                with trio.move_on_after(RELEASE_LIMIT_S):
                    await self._operations.wait_until_unused()
                if self._operations.client_handles:
                    log.warning("not unmounted: %d files are open", self._operations.client_handles)
                else:
                    await self.stop(gently=True)

    async def stop(self, *, gently: bool) -> None:
        """Unmount; with clients inside go back to serving if `gently`, else leave them behind."""
        if not gently:
            service_manager.stopping()
            _exit_after(STOP_LIMIT_S)
        if await self._unmount():
            if not gently:
                await trio.sleep(GRACE_S)  # the session ends now, unless a copy of the mount keeps it
                pyfuse3.terminate()
            return
        path = self._options.path
        if gently:
            log.warning("not unmounted: %s is in use", path)
            self._tasks.start_soon(self._resume_following)
            return
        users = ", ".join(map(str, mountpoint.clients(path, besides=os.getpid())))
        log.warning("detaching %s while it is in use by %s", path, users or "someone")
        with trio.move_on_after(STOP_LIMIT_S / 2), suppress(EnvironmentProblem):
            await trio.to_thread.run_sync(lambda: mountpoint.unmount(path, lazy=True), abandon_on_cancel=True)
        pyfuse3.terminate()
        _exit_after(GRACE_S)

    async def _unmount(self) -> bool:
        """Stop following and unmount; False when the mount is in use, or this takes too long."""
        with trio.move_on_after(STOP_LIMIT_S / 2):
            await self._stop_following()
            if self._detached.is_set():
                return True
            return await trio.to_thread.run_sync(lambda: mountpoint.unmount(self._options.path, lazy=False))
        return False

    async def _watch_mount(self, task_status: trio.TaskStatus[None]) -> None:
        """When someone else has detached the mount, wait for the last client and the last copy, and let go."""
        with open("/proc/self/mountinfo", "rb") as table, select.epoll() as changes:  # noqa: PTH123, ASYNC230
            changes.register(table, select.EPOLLPRI | select.EPOLLERR)
            task_status.started()
            while any(each == self._mount for each in mountpoint.mounts()):
                self._note_mounts()
                with trio.move_on_after(MOUNT_CHECK_S):
                    await trio.lowlevel.wait_readable(changes.fileno())
                changes.poll(0)
        self._detached.set()
        await self._wait_for_copies()
        await self._stop_following()
        await trio.sleep(GRACE_S)  # the session ends now, unless there is a copy that we may not see
        log.warning("the mount at %s was detached, and a copy of it remains somewhere: it ends", self._options.path)
        pyfuse3.terminate()

    def _note_mounts(self) -> None:
        """Called when the mount table may have changed."""

    async def _wait_for_copies(self) -> None:
        """Return when no client is inside and no copy of the detached mount is left."""
        while True:
            await self._operations.wait_until_unused()
            found = await self._copies()
            if not found:
                return
            await trio.sleep(COPY_CHECK_S)

    async def _copies(self) -> list[mountpoint.Copy]:
        if self._mount is None:
            return []
        return await trio.to_thread.run_sync(mountpoint.copies, self._mount, abandon_on_cancel=True)


def _exit_after(limit_s: float) -> None:
    """End the process although a request to the store may be under way, in a thread that nothing can stop."""
    timer = threading.Timer(limit_s, os._exit, [0])
    timer.daemon = True
    timer.start()
