"""Parses a configuration file in Litestream's format into a `Config`.

A `litestream.yml` has the same meaning as in Litestream; `keys.py` lists how each key is treated. Our additions are
`lease` (`hold`, `wait`, `off`), `retention.tiers` and `exec-without-credentials`. The settings of replication may be at
the top of the file or with one database, where they take precedence.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from litereplica.config import keys
from litereplica.config.document import Section, parse_document
from litereplica.config.expand import expand
from litereplica.config.targets import ConfiguredDatabase, absolute_path, parse_databases, parse_settings
from litereplica.errors import UsageError
from litereplica.writer.settings import Target, WriterSettings

MAX_CONFIG_BYTES = 4 << 20
"""A file with 10,000 databases has about 1 MiB."""

LOG_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
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
    """Settings of the control socket. `path` None is the default path."""

    enabled: bool = True
    path: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A configuration.

    `command` is the program of `exec`, split into words; with `withholds_credentials` it gets none of ours. `notes`
    name keys without effect, and `unset` the variables that the file refers to and that are not set.
    """

    databases: tuple[ConfiguredDatabase, ...]
    command: tuple[str, ...] = ()
    withholds_credentials: bool = False
    logging: LoggingSettings = LoggingSettings()
    socket: SocketSettings = SocketSettings()
    notes: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[Target, ...]:
        """The database and directory targets, in the order of the file."""
        return tuple(database.target for database in self.databases)


def parse_config(text: str, *, file: str, surroundings: Surroundings) -> Config:
    """Parse the text of a configuration. Raises `UsageError`, which names `file`, the line and the key."""
    unset: tuple[str, ...] = ()
    fill: Callable[[str], str] = str
    if surroundings.variables is not None:
        expanded = expand(text, surroundings.variables, pid=surroundings.pid)
        text, unset, fill = expanded.text, expanded.unset, expanded.fill
    document = parse_document(text, file=file, fill=fill)
    notes = keys.check(document, keys.DOCUMENT)

    def absolute(path: str) -> str:
        return absolute_path(path, directory=surroundings.directory, home=surroundings.home)

    databases = parse_databases(
        document, parse_settings(document, WriterSettings(), notes), absolute=absolute, notes=notes
    )
    if not databases:
        raise document.error("no database is configured", hint="add dbs: and below it '- path: …' with a replica")
    return Config(
        databases=databases,
        command=_command(document),
        withholds_credentials=bool(document.flag("exec-without-credentials")),
        logging=_logging(document, notes),
        socket=_socket(document, notes, absolute),
        notes=tuple(dict.fromkeys(notes)),
        unset=unset,
    )


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


def _logging(document: Section, notes: list[str]) -> LoggingSettings:
    section = document.section("logging")
    if section is None:
        return LoggingSettings()
    notes += keys.check(section, keys.LOGGING)
    level, kind = section.text("level", "info").lower(), section.text("type", "text").lower()
    if level not in LOG_LEVELS:
        hint = f"write {', '.join(LOG_LEVELS)}"
        raise section.error(f"{section.name('level')} is not a log level", key="level", hint=hint)
    if kind not in LOG_TYPES:
        hint = f"write {', '.join(LOG_TYPES)}"
        raise section.error(f"{section.name('type')} is not a log type", key="type", hint=hint)
    if section.flag("stderr") is False:
        notes.append(f"{section.name('stderr')} (line {section.entry('stderr').line}): the log always goes to stderr")
    return LoggingSettings(LOG_LEVELS[level], kind == "json")


def _socket(document: Section, notes: list[str], absolute: Callable[[str], str]) -> SocketSettings:
    section = document.section("socket")
    if section is None:
        return SocketSettings()
    notes += keys.check(section, keys.SOCKET)
    path = section.text("path")
    return SocketSettings(section.flag("enabled") is not False, Path(absolute(path)) if path else None)
