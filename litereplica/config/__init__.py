"""The configuration file: text in, values out. Nothing here opens a file, reads the environment or asks a clock.

config    the values, and the whole of a file
targets   the databases that it names
replica   a replica's part, in Litestream's shape, as one URL
keys      every key of Litestream's configuration, and what becomes of it here
document  YAML as sections whose values know their lines
expand    environment variables in the text
"""

from __future__ import annotations

from litereplica.config.config import Config, LoggingSettings, SocketSettings, Surroundings, parse_config
from litereplica.config.targets import ConfiguredDatabase

__all__ = [
    "Config",
    "ConfiguredDatabase",
    "LoggingSettings",
    "SocketSettings",
    "Surroundings",
    "parse_config",
]
