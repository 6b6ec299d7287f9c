"""The names of log levels, on the command line, in LOG_LEVEL and in the configuration file: Litestream's."""

from __future__ import annotations

LOG_LEVELS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40}
"""The levels of `logging` by their names in lower case. `trace` is `debug` here."""
