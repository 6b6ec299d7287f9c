"""One run of `litereplica replicate`, from start to end.

    _prepare            restores missing databases; a single database that does not exist yet is awaited
    _replicate          the fleet publishes; SIGHUP looks up the credentials again and reloads the configuration file
    _run_program        starts the program of `exec` once everything is published; it is not started while another
                        writer publishes one of the named databases
    serving, _handle    serve the control socket and handle signals throughout
    reporting           tells systemd what is done, `_say_ready` that it is

Lag is logged meanwhile. Without a program, SIGTERM or SIGINT ends replication. With a program, these signals are passed
on to it, and replication ends when it exits, so that everything it has written is published. In both cases the fleet
publishes the remaining transactions. If replication fails, the program is ended as well.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from litereplica import __version__
from litereplica.cli.child import Child, check_program, hide_process, start_child
from litereplica.cli.hangup import read_anew
from litereplica.cli.heartbeat import beat
from litereplica.cli.logging_setup import log_file
from litereplica.concurrent import gather
from litereplica.config import Config, ConfiguredDatabase
from litereplica.control import service_manager
from litereplica.control.address import Listen
from litereplica.control.manager_environment import without_manager
from litereplica.control.protocol import About
from litereplica.control.served import serving
from litereplica.errors import ExitCode, LiteReplicaError, Unpublished, UsageError
from litereplica.storage.credentials import without_credentials
from litereplica.times import format_duration
from litereplica.writer.fleet.control import WriterControl
from litereplica.writer.fleet.groups import FleetError
from litereplica.writer.fleet.lag_log import LOOK_INTERVAL_S, LagLog
from litereplica.writer.fleet.restore_missing import is_there, restore_missing, wait_for_database
from litereplica.writer.fleet.statistics import DatabaseStatistics, FleetStatistics, State
from litereplica.writer.fleet.supervisor import Supervisor, open_fleet
from litereplica.writer.publish.lease_keeper import LeaseMode
from litereplica.writer.settings import DatabaseTarget, DirectoryTarget, Target, WriterSettings

log = logging.getLogger(__name__)

PROGRAM_WAIT_S = 10.0
"""The program is started after this time even if not everything could be published: an application must not be down
because its backup is. A standby waits for the lease without limit."""
READY_WAIT_S = 10.0
"""The service manager is told that this process is ready after this time at the latest, for the same reason, and while
it stands by or restores, too: units that wait for it would not be started."""
RESTORES_AT_ONCE = 4
"""Concurrent restores: each has several requests of some MiB in flight."""
MAX_NAMED = 20
"""Up to this many databases are named in the log at the start; the others are only counted."""

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_PASSED_ON = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Replication:
    """One run. `file` is the configuration file and `reread` loads it again; both are None without such a file.

    `follow`: a single database that is replaced while it is replicated does not end the run. `listen`: where
    metrics are served.
    """

    def __init__(
        self,
        config: Config,
        *,
        file: Path | None = None,
        reread: Callable[[], Config] | None = None,
        follow: bool = False,
        listen: Listen | None = None,
    ) -> None:
        self._config = config
        self._follow = follow
        self._reread = reread
        self._listen = listen
        log_path = log_file()
        about = About(
            "writer",
            log_file=None if log_path is None else str(log_path),
            config=None if file is None else str(file.absolute()),
        )
        self._control = WriterControl(
            about, fleet=lambda: self._fleet, starting=self._starting, settings=WriterSettings()
        )
        self._stop = trio.Event()
        self._until_ready = trio.CancelScope()
        self._may_start_program = trio.Event()
        self._reload_wanted = trio.Event()
        self._fleet: Supervisor | None = None
        self._child: Child | None = None
        self._code: int = ExitCode.OK

    async def publish_once(self) -> FleetStatistics | None:
        """Publish all committed transactions once. Returns None if a signal ended it early. Raises the first error."""
        done = None
        async with self._signals():
            with self._until_ready:
                await self._prepare(self._config.databases)
                async with open_fleet(self._config.targets) as fleet:
                    await fleet.publish_once()
                    done = fleet.statistics()
        return done

    async def run(self) -> int:
        """Replicate until a signal arrives or the program exits; returns the exit code for this process.

        Raises the error that ends replication.
        """
        if self._config.command:
            check_program(self._config.command)
        socket = self._config.socket
        served = serving(self._control.routes(), socket.path, enabled=socket.enabled, mode=socket.mode)
        reporting = service_manager.reporting(self._status_line)
        async with self._signals(), served, self._metrics(), reporting, trio.open_nursery() as nursery:
            nursery.start_soon(self._say_ready)
            if self._config.command:
                nursery.start_soon(self._run_program)
            with self._until_ready:
                await self._prepare(self._config.databases)
                await self._wait_for_single_database()
            if not self._stop.is_set():
                await self._replicate()
            elif self._child is not None and self._single_path() is not None:
                await self._publish_what_was_made()
            if self._child is None:
                nursery.cancel_scope.cancel()
        return self._code

    @asynccontextmanager
    async def _metrics(self) -> AsyncIterator[None]:
        """Serve metrics and the status page during the block, if there is an address."""
        if self._listen is None:
            yield
            return
        from litereplica.cli.writer_site import WriterSite  # takes time to import, and few want it
        from litereplica.web.served import serving_tcp

        async with serving_tcp(self._listen, WriterSite(self._control, lambda: self._fleet)):
            yield

    # --- preparation

    async def _prepare(self, databases: Sequence[ConfiguredDatabase]) -> None:
        """Restore missing databases from their replicas, where configured. Raises the first error."""
        limiter = trio.CapacityLimiter(RESTORES_AT_ONCE)
        missing = [database.target for database in databases if database.restore_if_missing]
        await gather([partial(restore_missing, target, self._stop, limiter) for target in missing])

    def _single_path(self) -> Path | None:
        """The path of the only database if it may not exist yet; None if there are several, or it must exist."""
        targets = self._config.targets
        may_appear = self._config.command or self._reread or self._config.databases[0].restore_if_missing
        return targets[0].path if len(targets) == 1 and isinstance(targets[0], DatabaseTarget) and may_appear else None

    async def _wait_for_single_database(self) -> None:
        """Wait until the only database exists; the program may create it."""
        path = self._single_path()
        if path is not None and not is_there(path):
            (database,) = self._config.databases
            if database.target.settings.lease is LeaseMode.WAIT and not database.restore_if_missing:
                raise UsageError(
                    f"{path} does not exist, and a standby cannot create it",
                    hint="add --restore-if-db-not-exists",
                )
            self._may_start_program.set()
            await wait_for_database(path)

    async def _publish_what_was_made(self) -> None:
        """Publish the database that a program created before it ended, before replication began."""
        path = self._single_path()
        if path is not None and is_there(path):
            async with open_fleet(self._config.targets) as fleet:
                await fleet.publish_once()

    # --- replication

    async def _replicate(self) -> None:
        has_program = bool(self._config.command)
        async with (
            open_fleet(self._config.targets, conflicts_end=has_program, follow=self._follow) as fleet,
            trio.open_nursery() as nursery,
        ):
            self._fleet = fleet
            if self._reread is not None:  # without a file, the writer of the only database logs the same
                _log_targets(self._config.targets)
                nursery.start_soon(self._reload_on_demand, fleet, self._reread)
            nursery.start_soon(self._log_lag, fleet)
            if self._config.heartbeat is not None:
                nursery.start_soon(beat, self._config.heartbeat, fleet.statistics)
            try:
                await fleet.run(self._stop, task_status=_Started(self._may_start_program))
            except (Unpublished, FleetError) as exc:
                if self._code == ExitCode.OK:
                    raise
                log.error("%s", exc)  # the exit code is the program's own
            nursery.cancel_scope.cancel()

    def _starting(self) -> list[DatabaseStatistics]:
        """The records of the named databases before the fleet is open."""
        targets = (target for target in self._config.targets if isinstance(target, DatabaseTarget))
        return [DatabaseStatistics(target.path.absolute(), target.url, State.STARTING) for target in targets]

    # --- background tasks

    async def _say_ready(self) -> None:
        with trio.move_on_after(READY_WAIT_S):
            await self._may_start_program.wait()
        service_manager.ready(self._status_line)

    def _status_line(self) -> str:
        return "starting" if self._fleet is None else self._fleet.statistics().summary

    async def _log_lag(self, fleet: Supervisor) -> None:
        lag_log = LagLog()
        while True:
            await trio.sleep(LOOK_INTERVAL_S)
            line = lag_log.line(fleet.statistics().databases)
            if line is not None:
                log.log(line[0], "%s", line[1])

    async def _reload_on_demand(self, fleet: Supervisor, reread: Callable[[], Config]) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted = trio.Event()
            try:
                config = await trio.to_thread.run_sync(reread, abandon_on_cancel=True)
                old = {target.path for target in self._config.targets}
                await self._prepare([each for each in config.databases if each.target.path not in old])
                await fleet.reconfigure(config.targets)
            except (LiteReplicaError, OSError) as exc:
                log.error("cannot reload the configuration, which stays unchanged: %s", exc)
                continue
            finally:
                service_manager.ready()
            if _process_settings(config) != _process_settings(self._config):
                log.warning("changes of exec, logging, socket, heartbeat and addr take effect at the next start")
            self._config = config
            log.info("the configuration was reloaded: %s", _count(config.targets))

    # --- the program, and signals

    async def _run_program(self) -> None:
        with trio.move_on_after(self._program_wait_s()):
            await self._may_start_program.wait()
        if self._stop.is_set():
            return
        if not self._may_start_program.is_set():
            log.warning("not everything is published after %.0f s: starting the program anyway", PROGRAM_WAIT_S)
        if self._fleet is not None:
            self._fleet.tolerate_conflicts()
        self._child = child = await start_child(self._config.command, self._environment_of_program())
        try:
            if self._stop.is_set():  # a signal arrived while the program was started
                child.pass_on(signal.SIGTERM)
            self._code = await child.wait()
        finally:
            await child.end()
        service_manager.stopping()
        self._stop.set()
        self._until_ready.cancel()

    def _environment_of_program(self) -> dict[str, str]:
        """The environment for the program of `exec`."""
        environment = without_manager(os.environ)
        if not self._config.withholds_credentials:
            return environment
        hide_process()
        in_use = [target.credentials for target in self._config.targets if target.credentials is not None]
        return without_credentials(environment, in_use)

    def _program_wait_s(self) -> float:
        standby = any(target.settings.lease is LeaseMode.WAIT for target in self._config.targets)
        restores = any(database.restore_if_missing for database in self._config.databases)
        return float("inf") if standby or restores else PROGRAM_WAIT_S

    @asynccontextmanager
    async def _signals(self) -> AsyncIterator[None]:
        """Handle signals during the block."""
        numbers = [*_STOPPING, signal.SIGHUP, *(_PASSED_ON if self._config.command else ())]
        with trio.open_signal_receiver(*numbers) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._handle, signals)
                yield
                nursery.cancel_scope.cancel()

    async def _handle(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                self._hang_up()
            elif self._child is not None:
                log.info("received %s: passing it on", name)
                self._child.pass_on(number)
            elif number not in _PASSED_ON:
                log.info("received %s: publishing the remaining transactions", name)
                service_manager.stopping()
                self._stop.set()
                self._until_ready.cancel()

    def _hang_up(self) -> None:
        service_manager.reloading()
        read_anew()
        if self._reread is not None:
            self._reload_wanted.set()
            return
        if self._child is not None:
            self._child.pass_on(signal.SIGHUP)
        service_manager.ready()


class _Started:
    """A `trio.TaskStatus` that sets an event."""

    def __init__(self, event: trio.Event) -> None:
        self._event = event

    def started(self, value: object = None) -> None:
        self._event.set()


def _log_targets(targets: Sequence[Target]) -> None:
    """Log which databases are replicated to which URL."""
    log.info("litereplica %s, process %d: %s", __version__, os.getpid(), _count(targets))
    for target in targets[:MAX_NAMED]:
        settings = target.settings
        log.info(
            "%s to %s, at most every %s, lease: %s",
            f"{target.path}/{target.pattern}" if isinstance(target, DirectoryTarget) else target.path,
            target.url, format_duration(settings.sync_interval_s), settings.lease.value,
        )  # fmt: skip
    if len(targets) > MAX_NAMED:
        log.info("and %d more", len(targets) - MAX_NAMED)


def _count(targets: Sequence[Target]) -> str:
    directories = sum(isinstance(target, DirectoryTarget) for target in targets)
    counts = [(len(targets) - directories, "database", "databases"), (directories, "directory", "directories")]
    return " and ".join(f"{count} {one if count == 1 else many}" for count, one, many in counts if count)


def _process_settings(config: Config) -> tuple[object, ...]:
    """The settings of the process, which a reload does not change."""
    return (
        config.command, config.withholds_credentials, config.logging, config.socket, config.heartbeat, config.metrics,
    )  # fmt: skip
