"""Logging of the daemons: one line an event, to stderr or to a file that may be rotated.

Lines look like `2025-01-31T12:00:00.123Z INFO litereplica.writer.replicator: published L0/…`, in UTC. Modules
log to `logging.getLogger(__name__)` and know nothing of this. INFO is what an operator follows.
"""

from __future__ import annotations

import json
import logging
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path

import click

from litereplica.cli.printable import printable, printable_json
from litereplica.errors import EnvironmentProblem

LEVEL = logging.INFO
QUIET_LIBRARIES = ("boto3", "botocore", "s3transfer", "urllib3", "asyncio")
"""Libraries that log every request at INFO or DEBUG: only their warnings are kept."""


class LineFormatter(logging.Formatter):
    """ISO time in UTC, level, logger, message; control characters in a message are written as escapes."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


class JSONFormatter(LineFormatter):
    """The same as one JSON object a line: `time`, `level`, `logger`, `msg`, and `error` with a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return printable_json(json.dumps(fields, ensure_ascii=False))


class LogFileHandler(WatchedFileHandler):
    """A log file that may be rotated. A line that cannot be written, because the directory is gone, is dropped."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except Exception:  # a daemon must not end for want of its log
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing: there is no other place to report to."""


def configure_logging(path: Path | None = None, *, level: int = LEVEL, as_json: bool = False) -> None:
    """Send the log to the file `path` (appended to, reopened when it is rotated away), or to stderr.

    `litereplica --debug` lowers the level to DEBUG. Called once by a command that is going to log. Raises
    `EnvironmentProblem` when the file cannot be written.
    """
    handler = _file_handler(path) if path else logging.StreamHandler()
    handler.setFormatter(JSONFormatter() if as_json else LineFormatter())
    logging.basicConfig(level=logging.DEBUG if _debug() else level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


def log_file() -> Path | None:
    """The file that the log goes to; None when it does not go to one."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, WatchedFileHandler):
            return Path(handler.baseFilename)
    return None


def _file_handler(path: Path) -> logging.Handler:
    try:
        return LogFileHandler(path, encoding="utf-8")
    except OSError as error:
        hint = "name another file with --log-file"
        raise EnvironmentProblem(f"cannot write the log {path}: {error.strerror}", hint=hint) from error


def _debug() -> bool:
    ctx = click.get_current_context(silent=True)
    return ctx is not None and bool(ctx.find_root().params.get("debug"))
