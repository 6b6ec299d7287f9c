"""Presentation of a replica as files, through FUSE.

`live.py` plays SQLite's writer and checkpointer towards the clients of a mount (docs/design/live-mount.md).
`operations.py` translates requests and nothing else.
"""
