"""Compares two SQLite database files: pages, schema, and rows by table.

Both are ordinary files that must not change meanwhile. SQLite does the work, through apsw.
"""
