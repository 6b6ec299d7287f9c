"""One database of a prefix mount: its inodes, its open handles, and its life between activations.

    parked → activating → active → parking → parked

One task is one activation: it opens the replica, serves it and parks it in one frame, so that everything is closed in
order whatever happens. An open starts the task and waits for it; an open that gives up does not end it. Handles, and
opens that wait, protect from parking.

The inodes stay while the kernel references them, through any number of activations. The kernel may therefore have
attributes and pages of an earlier one: they are dropped before an activation is ready, once our descriptors are open,
and again when it is parked.

A database fails alone. If its tasks fail while clients have it open, these get EIO until all of them have closed it:
another activation would show them another base.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress

import pyfuse3
import trio

from litereplica.concurrent import first_error
from litereplica.control.protocol import WaitFor
from litereplica.errors import DatabaseNotFound, LiteReplicaError, NoReplica, TransientStorageError
from litereplica.fuse.active_databases import ActiveDatabases
from litereplica.fuse.at_tree import AtDirectory
from litereplica.fuse.client_locks import ClientLocks
from litereplica.fuse.errno import errno_of
from litereplica.fuse.kernel_cache import LiveFile
from litereplica.fuse.live_nodes import live_node, pos_node
from litereplica.fuse.live_service import LiveService
from litereplica.fuse.nodes import Attributes, InodeTable, Node
from litereplica.fuse.state import MountState
from litereplica.fuse.status_database import Row
from litereplica.types import Pos

log = logging.getLogger(__name__)

NAME_TIMEOUT_S = 1.0
"""How long the kernel may use a name without asking."""

RETRY_S = 1.0
"""How long opens fail at once after an activation has failed."""

POS_SUFFIX = "-pos"
_FILES = {file.value: file for file in LiveFile}


class PrefixDatabase:
    """The database at `path`. `seen_at` is when the store last had it (trio's time). A `LiveSource`."""

    def __init__(self, path: str, inodes: InodeTable, active: ActiveDatabases) -> None:
        self.path = path
        self.name = path.rpartition("/")[2]
        self.seen_at = self.used_at = trio.current_time()
        self._is_gone = False  # the store no longer has it, or another database has its name
        self._inodes = inodes
        self._active = active
        self._files = {file: inodes.allocate() for file in LiveFile}
        self._nodes: dict[str, Node] = {}
        self._clients: ClientLocks | None = None
        self._sizes = dict.fromkeys(LiveFile, 0)  # while it is parked
        self._handles: set[int] = set()
        self._waiting = 0
        self._service: LiveService | None = None
        self._is_ready = False
        self._is_running = False
        self._is_broken = False  # its tasks failed while clients had it open
        self._changed = trio.Event()
        self._park = trio.Event()
        self._failure: Exception | None = None
        self._failed_at = -math.inf

    # --- nodes ---------------------------------------------------------------------------------------

    def node(self, suffix: str) -> Node:
        """Return the node of a file by the suffix of its name; it is made when it is first asked for."""
        if suffix not in self._nodes:
            if suffix == POS_SUFFIX:
                node: Node = pos_node(self._inodes.allocate(), self, entry_timeout_s=NAME_TIMEOUT_S)
            else:
                node = live_node(self._files[_FILES[suffix]], self, _FILES[suffix])
            self._nodes[suffix] = self._inodes.add(node)
        return self._nodes[suffix]

    @property
    def is_used(self) -> bool:
        """True if a client or a task uses the database."""
        return self._is_running or self._is_in_use

    @property
    def is_referenced(self) -> bool:
        """True if it is used, or if the kernel knows one of its files."""
        return self.is_used or any(node.references > 0 for node in self._nodes.values())

    def leave_tree(self) -> None:
        """Refuse to be activated from now on. What is open stays open."""
        self._is_gone = True

    def discard(self) -> None:
        """Remove its nodes from the table. It must not be referenced."""
        for node in self._nodes.values():
            self._inodes.remove(node)
        self._nodes.clear()

    # --- what the nodes ask --------------------------------------------------------------------------

    @property
    def clients(self) -> ClientLocks:
        """The clients of the database."""
        if self._clients is None:
            self._clients = ClientLocks(self._files, self._active.processes)
        return self._clients

    @property
    def pos(self) -> Pos:
        """The position that a transaction which begins now will see. The database must be active."""
        if self._service is None:
            raise OSError(errno.EIO, f"{self.path} is not active")
        return self._service.pos

    def attributes(self, file: LiveFile) -> Attributes:
        """Attributes of a file: while the database is parked, those with which it was parked, for this moment."""
        service = self._service
        if service is None:
            return Attributes(size=self._sizes[file], entry_timeout_s=NAME_TIMEOUT_S, attr_timeout_s=0)
        return Attributes(size=service.attributes(file).size, entry_timeout_s=NAME_TIMEOUT_S)

    def extended(self, uid: int) -> Mapping[str, str]:
        """Extended attributes of the database file; none while it is parked."""
        return self._service.extended(uid) if self._service is not None else {}

    def state(self) -> MountState | None:
        """The state of this moment; None unless the database is active."""
        return self._service.state() if self._service is not None and self._is_ready else None

    async def points(self) -> Sequence[Row]:
        """Return the newest points; none unless the database is active."""
        return await self._service.points() if self._service is not None and self._is_ready else ()

    async def prepare(self, file: LiveFile) -> None:
        """Activate the database for a client's open.

        Raises `OSError` (ENOENT, EIO, ENFILE), and what the activation raises.
        """
        with self.kept_active():
            await (await self.activated()).prepare(file)

    async def read(self, file: LiveFile, offset: int, size: int) -> bytes:
        """Answer a READ of a client, which keeps the database active."""
        if self._service is None or not self._is_ready:
            raise pyfuse3.FUSEError(errno.EIO)
        return await self._service.read(file, offset, size)

    def read_now(self, file: LiveFile, offset: int, size: int) -> bytes | bytearray | None:
        """Answer a READ of a client if that takes no waiting; else None."""
        if self._service is None or not self._is_ready:
            return None
        return self._service.read_now(file, offset, size)

    def opened(self, handle: int, file: LiveFile, thread_id: int) -> None:
        """Note that a client has opened a file."""
        self._handles.add(handle)
        self.clients.opened(handle, file, thread_id)

    def closed(self, handle: int) -> None:
        """Note that a handle was closed."""
        self._handles.discard(handle)
        self.clients.closed(handle)
        self.used_at = trio.current_time()
        if not self._handles:
            self._is_broken = False

    def statistics(self) -> dict[str, object]:
        """Return what is known of the database, by name, for a status."""
        found: dict[str, object] = {"handles": len(self._handles), "size": self._sizes[LiveFile.DATABASE]}
        if self._failure is not None:
            found["error"] = str(self._failure)
        if self._service is not None:
            found |= self._service.statistics()
            found["size"] = self.attributes(LiveFile.DATABASE).size
        return found

    # --- waiting for a position ----------------------------------------------------------------------

    async def reach(self, wanted: WaitFor) -> MountState:
        """Activate the database, and return its state when transactions that begin now see what is wanted.

        A failure to activate it is not the end: it is tried again, without limit. Raises `DatabaseNotFound` if the
        database has gone.
        """
        with self.kept_active():
            while True:
                try:
                    service = await self.activated()
                except (OSError, pyfuse3.FUSEError) as exc:
                    if exc.errno == errno.ENOENT:
                        raise DatabaseNotFound(f"{self.path} is no longer in the store", hint="check the name") from exc
                    await trio.sleep(RETRY_S)
                    continue
                if await self._reaches(service, wanted):
                    return service.state()

    async def _reaches(self, service: LiveService, wanted: WaitFor) -> bool:
        """Return True when a service has reached what is wanted, False if it ends before."""
        has_reached = False
        async with trio.open_nursery() as nursery:

            async def reach() -> None:
                nonlocal has_reached
                await service.reach(wanted)
                has_reached = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(reach)
            while self._service is service:
                await self._changed.wait()
            nursery.cancel_scope.cancel()
        return has_reached

    # --- activation ----------------------------------------------------------------------------------

    @property
    def handles(self) -> int:
        """Number of files that clients have open."""
        return len(self._handles)

    @property
    def is_active(self) -> bool:
        """True between activation and parking."""
        return self._is_ready

    @property
    def past(self) -> AtDirectory | None:
        """The directory `.at` of the active database."""
        return self._service.past if self._service is not None else None

    @property
    def _is_in_use(self) -> bool:
        past = self.past
        return bool(self._handles or self._waiting) or (past is not None and past.is_in_use)

    def is_idle(self, for_s: float) -> bool:
        """True if it is active and nobody has used it for this time."""
        return self._is_ready and not self._is_in_use and trio.current_time() - self.used_at >= for_s

    def park(self) -> None:
        """Begin to park it. Must be idle."""
        self._is_ready = False
        self._park.set()

    @contextmanager
    def kept_active(self) -> Iterator[None]:
        """Protect the database from parking within the block."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self.used_at = trio.current_time()

    async def activated(self) -> LiveService:
        """Return the active database; to be called in a block of `kept_active`.

        Raises `FUSEError`: ENOENT if it has gone, EIO if it failed and is still open, or the errno of why it cannot be
        opened, which was logged. `OSError`: ENFILE.
        """
        started = False
        while not (self._is_ready and self._service is not None):
            if self._is_gone:
                raise pyfuse3.FUSEError(errno.ENOENT)
            if self._is_broken:
                raise pyfuse3.FUSEError(errno.EIO)
            if not self._is_running:
                if self._failure is not None and (started or trio.current_time() - self._failed_at < RETRY_S):
                    raise pyfuse3.FUSEError(errno_of(self._failure))
                self._active.start(self, self._run)
                self._is_running = True
            started = True
            await self._changed.wait()
        return self._service

    async def _run(self) -> None:
        """One activation, from its beginning to its end."""
        self._park = trio.Event()
        self._failure = None
        try:
            await self._live()
        except Exception as exc:  # the boundary of one database
            self._fail(first_error(exc))
        finally:
            self._service = None
            self._is_ready = self._is_running = False
            self._tell()

    async def _live(self) -> None:
        limit_s = self._active.options.read_timeout_s
        with trio.CancelScope() as opening:
            async with AsyncExitStack() as stack:
                async with self._active.turn:
                    opening.deadline = trio.current_time() + limit_s
                    replica = await stack.enter_async_context(self._active.open_replica(self.path))
                    service = self._active.service(self, replica, files=self._files, clients=self.clients)
                    self._service = service
                    stack.push_async_callback(self._close, service)
                    await service.open_own(lambda file: self._active.path_of(self.node(file.value)))
                    await self._forget_cached(service)
                    opening.deadline = math.inf
                await self._serve(service)
                await self._forget_cached(service)
        if opening.cancelled_caught:
            raise TransientStorageError(f"{self.path} could not be opened within {limit_s:g} s")

    async def _serve(self, service: LiveService) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._start_service, service)
            self.seen_at = self.used_at = trio.current_time()
            self._is_ready = True
            self._tell()
            await self._park.wait()
            nursery.cancel_scope.cancel()

    async def _start_service(self, service: LiveService, task_status: trio.TaskStatus[None]) -> None:
        await service.run(task_status.started, device=self._active.device)

    async def _forget_cached(self, service: LiveService) -> None:
        """Make the kernel drop what it has of the files, attributes included."""
        for file in LiveFile:
            await service.kernel.invalidate(file)

    async def _close(self, service: LiveService) -> None:
        with trio.CancelScope(shield=True), suppress(OSError):
            await trio.to_thread.run_sync(service.close_own)
        self._sizes = {file: service.attributes(file).size for file in LiveFile}
        if service.past is not None:
            service.past.close()

    def _fail(self, error: Exception) -> None:
        """Note why an activation ended, and say so once for each reason."""
        self._is_broken = bool(self._handles)
        self._failed_at = trio.current_time()
        if isinstance(error, NoReplica):
            self.seen_at = -math.inf  # so that its name is asked for
            error = OSError(errno.ENOENT, f"{self.path} is no longer in the store")
        elif not isinstance(error, LiteReplicaError | OSError):
            log.exception("%s has failed", self.path, exc_info=error)
        else:
            self._active.warn(f"{self.path} cannot be read: {error}")
        self._failure = error

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
