"""What differs between two SQLite databases on this machine: pages, schema, rows by table.

Knows nothing of replicas: both are ordinary files that nobody changes. SQLite is asked through apsw.
"""
