"""Logging is one state of the whole process: a test that configures it puts it back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from litereplica.cli.logging_setup import QUIET_LIBRARIES


@contextmanager
def logging_restored() -> Iterator[None]:
    """Take the root logger's handlers away for the block; close those set in it and restore all after it."""
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, QUIET_LIBRARIES)]
    levels = [logger.level for logger in loggers]
    handlers, root.handlers = root.handlers, []
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for handler in root.handlers:
            handler.close()
        root.handlers = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
