"""Presentation of a replica as files, through FUSE.

`live.py` plays SQLite's writer and checkpointer towards the clients of a mount; docs/ARCHITECTURE.md, "The live
mount", tells how. `operations.py` translates requests and nothing else.
"""
