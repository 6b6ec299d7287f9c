"""litereplica: live, read-only SQLite replicas as ordinary files.

A *writer* (`litereplica.writer`) publishes the transactions of a SQLite database as LTX files in an
object store; any number of *mounts* (`litereplica.replica`, `litereplica.fuse`) present them as a
SQLite file that follows. docs/ARCHITECTURE.md describes the layers.
"""

__version__ = "0.1.0"
