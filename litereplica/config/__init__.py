"""Parses the configuration file: text in, values out. Nothing here opens a file or reads the environment.

expand    replaces environment variables in the text
document  parses YAML into sections whose values know their lines
findings  collects errors, of which all are shown, and remarks
keys      lists every key of Litestream's configuration, and how it is treated
config    parses the whole file into a `Config`
targets   parses the list of databases
replica   converts a replica's settings into one URL
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
