"""Parses a configuration file in Litestream's format into a `Config`.

A `litestream.yml` has the same meaning as in Litestream; `keys.py` lists how each key is treated. Our additions are
`lease` (`hold`, `wait`, `off`), `retention.tiers` and `exec-without-credentials`. The settings of replication may be at
the top of the file or with one database, where they take precedence.
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from litereplica.config import keys
from litereplica.config.document import Fill, Section, parse_document, unchanged
from litereplica.config.expand import expand
from litereplica.config.findings import Findings
from litereplica.config.replica import Replica, parse_replica
from litereplica.config.targets import ConfiguredDatabase, absolute_path, parse_databases, parse_settings
from litereplica.control.address import Address, parse_address
from litereplica.errors import UsageError
from litereplica.log_levels import LOG_LEVELS
from litereplica.times import MINUTE_MS
from litereplica.writer.settings import Target, WriterSettings

MAX_CONFIG_BYTES = 4 << 20
"""A file with 10,000 databases has about 1 MiB."""

HEARTBEAT_MS = 5 * MINUTE_MS
MIN_HEARTBEAT_MS = MINUTE_MS
"""Litestream's default and limit."""

LOG_TYPES = ("text", "json", "pretty")
"""`pretty` is Litestream's coloured text; here it is text."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The environment that the text may refer to.

    `variables` are those of the environment (None: nothing is expanded), `directory` is the base of relative paths, and
    `home` replaces `~`.
    """

    variables: Mapping[str, str] | None = field(repr=False)
    pid: int
    directory: Path
    home: Path | None = None


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    """Settings of the log. `level` is one of `logging`; with `json`, each line is a JSON object."""

    level: int = logging.INFO
    json: bool = False


@dataclass(frozen=True, slots=True)
class SocketSettings:
    """Settings of the control socket. With `path`, there is another one there, with permissions `mode`."""

    enabled: bool = True
    path: Path | None = None
    mode: int = 0o600


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Where metrics are served, None for nowhere, and the file of their token, None for that of the environment."""

    address: Address | None = None
    token_file: Path | None = None


NO_METRICS = MetricsSettings()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A URL that is requested every `interval_s` seconds while all databases are published. It may be a secret."""

    url: str = field(repr=False)
    interval_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A configuration.

    `command` is the program of `exec`, split into words; with `withholds_credentials` it gets none of ours. `notes`
    name keys without effect, `former` those of Litestream 0.3 with what to write instead, and `unset` the variables
    that the file refers to and that are not set. `top` has the settings for all replicas, without a file None.
    """

    databases: tuple[ConfiguredDatabase, ...]
    command: tuple[str, ...] = ()
    withholds_credentials: bool = False
    logging: LoggingSettings = LoggingSettings()
    socket: SocketSettings = SocketSettings()
    heartbeat: Heartbeat | None = None
    metrics: MetricsSettings = NO_METRICS
    notes: tuple[str, ...] = ()
    former: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()
    top: Section | None = field(default=None, repr=False, compare=False)

    def replica_at(self, url: str) -> Replica:
        """The replica at a URL that the file does not name, with the settings at its top. Raises `UsageError`."""
        if self.top is None:
            return Replica(url, None)
        return parse_replica(self.top.of_texts({"url": url}), self.top, absolute=str)

    @property
    def targets(self) -> tuple[Target, ...]:
        """The database and directory targets, in the order of the file."""
        return tuple(database.target for database in self.databases)


def parse_config(text: str, *, file: str, surroundings: Surroundings) -> Config:
    """Parse the text of a configuration.

    Raises:
        UsageError: names `file`, the line and the key; `ConfigurationErrors` if several things are wrong.
    """
    unset: tuple[str, ...] = ()
    fill: Fill = unchanged
    if surroundings.variables is not None:
        expanded = expand(text, surroundings.variables, pid=surroundings.pid)
        text, unset, fill = expanded.text, expanded.unset, expanded.fill
    document = parse_document(text, file=file, fill=fill)
    findings = Findings()
    keys.check(document, keys.DOCUMENT, findings)

    def absolute(path: str) -> str:
        return absolute_path(path, directory=surroundings.directory, home=surroundings.home)

    defaults, command, withholds_credentials, heartbeat = WriterSettings(), tuple[str, ...](), False, None
    logging_settings, socket, metrics = LoggingSettings(), SocketSettings(), NO_METRICS
    with findings.caught():
        defaults = parse_settings(document, defaults, findings)
    with findings.caught():
        command = _command(document)
    with findings.caught():
        withholds_credentials = bool(document.flag("exec-without-credentials"))
    with findings.caught():
        logging_settings = _logging(document, findings)
    with findings.caught():
        socket = _socket(document, findings, absolute)
    with findings.caught():
        heartbeat = _heartbeat(document)
    with findings.caught():
        metrics = _metrics(document, absolute)
    databases = parse_databases(document, defaults, absolute=absolute, findings=findings)
    findings.require_none()
    if not databases:
        raise document.error("no database is configured", hint="add dbs: and below it '- path: …' with a replica")
    return Config(
        databases=databases,
        command=command,
        withholds_credentials=withholds_credentials,
        logging=logging_settings,
        socket=socket,
        heartbeat=heartbeat,
        metrics=metrics,
        notes=tuple(dict.fromkeys(findings.notes)),
        former=tuple(dict.fromkeys(findings.former)),
        unset=unset,
        top=document,
    )


def _heartbeat(document: Section) -> Heartbeat | None:
    url = document.text("heartbeat-url")
    interval_ms = document.duration_ms("heartbeat-interval")
    if interval_ms is not None and interval_ms < MIN_HEARTBEAT_MS:
        hint = "write for instance 5m"
        raise document.error("heartbeat-interval is less than a minute", key="heartbeat-interval", hint=hint)
    if not url:
        return None
    if not url.startswith(("http://", "https://")):
        raise document.error("heartbeat-url is not a URL of http", key="heartbeat-url", hint="write https://…")
    return Heartbeat(url, (interval_ms or HEARTBEAT_MS) / 1000)


def split_command(text: str) -> tuple[str, ...]:
    """Split a command line into words, quoted as in a shell. Raises `UsageError` if it needs a shell, or is empty."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as exc:
        raise UsageError("the command has a quote that is not closed", hint="close it") from exc
    if _has_operator(text):
        raise UsageError("the command is not run by a shell, but has shell operators", hint="write sh -c '…'")
    if not words or not words[0]:
        raise UsageError("the command is empty", hint="name a program")
    return words


def _has_operator(text: str) -> bool:
    """True if one of `;&|<>` is outside of quotes."""
    quote = ""
    characters = iter(text)
    for character in characters:
        if character == "\\" and quote != "'":
            next(characters, None)
        elif quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in ";&|<>":
            return True
    return False


def _command(document: Section) -> tuple[str, ...]:
    text = document.text("exec")
    if not text.strip():
        return ()
    try:
        return split_command(text)
    except UsageError as exc:
        raise document.error(f"exec: {exc.message}", key="exec", hint=exc.hint) from exc


def _logging(document: Section, findings: Findings) -> LoggingSettings:
    section = document.section("logging")
    if section is None:
        return LoggingSettings()
    keys.check(section, keys.LOGGING, findings)
    level, kind = section.text("level", "info").lower(), section.text("type", "text").lower()
    if level not in LOG_LEVELS:
        hint = f"write {', '.join(LOG_LEVELS)}"
        raise section.error(f"{section.name('level')} is not a log level", key="level", hint=hint)
    if kind not in LOG_TYPES:
        hint = f"write {', '.join(LOG_TYPES)}"
        raise section.error(f"{section.name('type')} is not a log type", key="type", hint=hint)
    if section.flag("stderr") is False:
        where = f"{section.name('stderr')} (line {section.entry('stderr').line})"
        findings.notes.append(f"{where}: the log always goes to stderr")
    return LoggingSettings(LOG_LEVELS[level], kind == "json")


def _socket(document: Section, findings: Findings, absolute: Callable[[str], str]) -> SocketSettings:
    section = document.section("socket")
    if section is None:
        return SocketSettings()
    keys.check(section, keys.SOCKET, findings)
    path = section.text("path")
    mode = section.text("permissions", "0600").removeprefix("0o")
    if not re.fullmatch("[0-7]{3,4}", mode):
        raise section.error(f"{section.name('permissions')} is no mode of a file", key="permissions", hint="write 0600")
    return SocketSettings(section.flag("enabled") is not False, Path(absolute(path)) if path else None, int(mode, 8))


def _metrics(document: Section, absolute: Callable[[str], str]) -> MetricsSettings:
    text, file = document.text("addr"), document.text("metrics-token-file")
    try:
        address = parse_address(text) if text else None
    except UsageError as exc:
        raise document.error("addr is not an address to listen on", key="addr", hint=exc.hint) from None
    return MetricsSettings(address, Path(absolute(file)) if file else None)
