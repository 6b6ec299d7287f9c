"""What the headers of two LTX files prove about their histories, without a request. Pure."""

from __future__ import annotations

from litereplica.format.ltx import Header


def goes_on(before: Header, after: Header) -> bool:
    """True if the frames of `after` are those that follow the frames of `before` in the same WAL."""
    same_wal = (before.wal_salt1, before.wal_salt2) == (after.wal_salt1, after.wal_salt2)
    return bool(before.wal_offset) and same_wal and after.wal_offset == before.wal_offset + before.wal_size


def is_one_lineage(before: Header, after: Header) -> bool:
    """True if both files are known to be of one history; False if they are not, or if it is not known."""
    return before.node_id != 0 and before.node_id == after.node_id


def is_other_lineage(before: Header, after: Header) -> bool:
    """True if the files are known to be of different histories."""
    return before.node_id != after.node_id and before.node_id != 0 != after.node_id
