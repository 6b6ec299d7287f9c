"""Retention as one call, for tests that delete at a time of their own."""

from __future__ import annotations

from litereplica.compaction.pruner import Pruner
from litereplica.compaction.retention import Deletion


async def prune_due(pruner: Pruner) -> list[Deletion]:
    """List, and delete what is due. Returns what that was."""
    due = await pruner.due(await pruner.store.list_levels())
    await pruner.delete(due)
    return due
