"""Restores a replica, or the backup by Litestream 0.3 that is at the same place.

After an upgrade of Litestream to 0.5, at the same URL, older states are in `generations/` and newer ones in LTX files;
after a return to 0.3 it is the other way round. What reaches nearest to the state that is asked for is restored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litereplica.errors import PointNotFound
from litereplica.history.timeline import find_txid
from litereplica.ltxstore.store import LTXStore
from litereplica.restore.generations import Backup, BackupResult, find_backup, restore_backup
from litereplica.restore.integrity_check import IntegrityCheck
from litereplica.restore.restore import RestoreResult, restore
from litereplica.types import TXID


async def restore_any(
    store: LTXStore,
    output: Path,
    *,
    target: TXID | None = None,
    before_ms: int | None = None,
    force: bool = False,
    integrity_check: IntegrityCheck = IntegrityCheck.NONE,
    **options: Any,
) -> RestoreResult | BackupResult:
    """Restore as `restore.restore` with the same options, or as `generations.restore_backup`. Raises as they do."""
    backup = await chosen_backup(store, target=target, before_ms=before_ms)
    if backup is None:
        return await restore(
            store,
            output,
            target=target,
            before_ms=before_ms,
            force=force,
            integrity_check=integrity_check,
            **options,
        )
    return await restore_backup(
        store.storage,
        backup,
        output,
        until_ms=before_ms,
        force=force,
        integrity_check=integrity_check,
        progress=options.get("progress"),
        access=options.get("access"),
    )


async def chosen_backup(store: LTXStore, *, target: TXID | None = None, before_ms: int | None = None) -> Backup | None:
    """Return the backup by Litestream 0.3 if that is what is to be restored; None if the LTX files are.

    For the newest state, that is what was written last. For a time, it is the backup if the LTX files begin later, or
    if it was written to after the last of them that is not after the time. One listing if there is no backup.
    """
    backup = await find_backup(store.storage) if target is None else None
    if backup is None:
        return None
    files = await store.list_levels()
    if not files:
        return backup
    if before_ms is None:
        return backup if backup.newest_ms > max(info.modified_ms for info in files) else None
    if not any(each.modified_ms <= before_ms for each in backup.snapshots):
        return None
    try:
        await find_txid(store, files, before_ms=before_ms)
    except PointNotFound:
        return backup
    reached_ms = max(each.modified_ms for each in backup.plan(until_ms=before_ms))
    written_ms = max((info.modified_ms for info in files if info.modified_ms <= before_ms), default=before_ms)
    return backup if reached_ms > written_ms else None
