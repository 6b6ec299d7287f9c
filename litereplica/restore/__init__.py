"""Writing a database from a replica to a local file, once or following it."""
