"""Sets up the logging of the daemons: one line an event, to stderr or to a file that may be rotated.

Lines look like `2025-01-31T12:00:00.123Z INFO litereplica.writer.replicator: published L0/…`, in UTC. Modules
log to `logging.getLogger(__name__)`. INFO is meant for operators.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

import click

from litereplica.errors import EnvironmentProblem
from litereplica.foreign_directory import open_own_file
from litereplica.log_levels import LOG_LEVELS
from litereplica.printable import printable, printable_json

LEVEL = logging.INFO
LEVEL_VARIABLE = "LOG_LEVEL"
QUIET_LIBRARIES = ("boto3", "botocore", "s3transfer", "urllib3", "asyncio")
"""Libraries that log every request at INFO or DEBUG: only their warnings are logged."""

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
_DEVICES = Path("/dev")
"""Only root puts anything there, and /dev/stdout is a link to what may be a pipe."""

ATTRIBUTES = ("db", "url", "txid", "size_bytes", "received_bytes", "sent_bytes", "duration_ms")
"""What log calls give as `extra`, in the language of docs/JSON.md."""


class LineFormatter(logging.Formatter):
    """Formats a record as a line: ISO time in UTC, level, logger, and message with control characters escaped."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line, without a traceback."""
        record.message = printable(record.message)
        return super().formatMessage(record)


class JSONFormatter(LineFormatter):
    """Formats a record as a JSON object on one line: `time`, `level`, `logger`, `msg`, and `error` with a traceback.

    The attributes of a record that are named in `ATTRIBUTES` are fields as well.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "msg": record.getMessage(),
            **{name: getattr(record, name) for name in ATTRIBUTES if hasattr(record, name)},
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return printable_json(json.dumps(fields, ensure_ascii=False))


class LogFileHandler(logging.FileHandler):
    """A log file that may be rotated, and that only this user may read when it is made: it names paths and URLs.

    It is looked for by its name before each line. Another user may have put something there meanwhile: that is refused,
    as it is at the start (`open_own_file`). Lines that cannot be written, for example on a full disk, go to stderr.
    """

    def _open(self) -> TextIOWrapper:
        return open(self._descriptor(), "a", encoding="utf-8")  # noqa: PTH123 - a descriptor

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        try:
            self._follow_name()
            super().emit(record)
        except Exception:  # a daemon must not end because it cannot log
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Write the record to stderr, which a mount in the background does not have."""
        with suppress(Exception):
            print(self.format(record), file=sys.stderr, flush=True)

    def _follow_name(self) -> None:
        """Open the file that has the name now, unless it is the one that is open. Raises `OSError`."""
        if self.stream is None:
            return
        fd = self._descriptor()
        try:
            is_open = os.path.sameopenfile(fd, self.stream.fileno())
        finally:
            os.close(fd)
        if not is_open:
            before, self.stream = self.stream, self._open()
            before.close()

    def _descriptor(self) -> int:
        path = Path(self.baseFilename)
        return os.open(path, _FLAGS) if path.parent == _DEVICES else open_own_file(path, _FLAGS | os.O_CREAT)


def configure_logging(path: Path | None = None, *, level: int = LEVEL, as_json: bool = False) -> None:
    """Log to the file `path` (appended to, and reopened after a rotation), or to stderr.

    `level` is that of the configuration file: --debug, --log-level and LOG_LEVEL go before it, in this order. Called
    once by a command that logs.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
    handler = _file_handler(path) if path else logging.StreamHandler()
    handler.setFormatter(JSONFormatter() if as_json else LineFormatter())
    logging.basicConfig(level=_chosen(level), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


def log_if_asked() -> None:
    """Log to stderr if the user has named a level and nothing is logged yet: for commands that do not log otherwise."""
    unlikely = logging.CRITICAL + 1
    if _chosen(unlikely) != unlikely and not logging.getLogger().handlers:
        configure_logging()


def log_file() -> Path | None:
    """The log file; None if the log does not go to a file."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogFileHandler):
            return Path(handler.baseFilename)
    return None


def _file_handler(path: Path) -> logging.Handler:
    try:
        return LogFileHandler(path, encoding="utf-8")
    except OSError as error:
        hint = "name another file with --log-file"
        raise EnvironmentProblem(f"cannot write the log {path}: {error.strerror}", hint=hint) from error


def _chosen(level: int) -> int:
    ctx = click.get_current_context(silent=True)
    params = {} if ctx is None else ctx.find_root().params
    if params.get("debug"):
        return logging.DEBUG
    if params.get("log_level"):
        return LOG_LEVELS[params["log_level"]]
    # applications beside us may have other names for their levels: those change nothing, as in Litestream
    return LOG_LEVELS.get(os.environ.get(LEVEL_VARIABLE, "").lower(), level)
