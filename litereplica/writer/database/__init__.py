"""The local side of a writer: SQLite connections, the WAL, checkpoints, the state directory."""
