"""What `litereplica restore` prints: what was restored, or would be, as text or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from litereplica.cli import output
from litereplica.cli.ltx import record
from litereplica.cli.params import format_size
from litereplica.cli.replica_of import ReplicaOf
from litereplica.format.names import format_name, format_txid
from litereplica.restore.generations import BackupFile, BackupResult
from litereplica.restore.integrity_check import IntegrityCheck
from litereplica.restore.restore import RestorePreview, RestoreResult
from litereplica.storage.url import redacted
from litereplica.times import format_time

Result: TypeAlias = RestoreResult | BackupResult

PLAN_COLUMNS = ("level", "file", "size", "read", "requests")
BACKUP_COLUMNS = ("file", "size", "written")


def restored_line(path: Path, result: Result, seconds: float) -> str:
    """One line about a restored database."""
    files = "1 file" if len(result.files) == 1 else f"{len(result.files)} files"
    made = f"{format_size(result.size)} from {files} in {seconds:.1f} s"
    if isinstance(result, BackupResult):
        what = f"generation {result.generation}, WAL file {result.index:08x}, of a backup by Litestream 0.3"
    else:
        what = f"TXID {format_txid(result.txid)}"
    return f"restored {what} to {path}: {made}"


def summary(url: str, path: Path, result: Result, check: IntegrityCheck, seconds: float) -> dict[str, Any]:
    """A restored database as JSON: the keys of `litestream restore -json`, and ours."""
    return {
        "db_path": str(path),
        "replica": redacted(url),
        "txid": "" if isinstance(result, BackupResult) else format_txid(result.txid),
        **({"generation": result.generation, "wal_index": result.index} if isinstance(result, BackupResult) else {}),
        "page_size": result.page_size,
        "pages": result.pages,
        "bytes": result.size,
        "files": len(result.files),
        "bytes_read": result.bytes_read,
        "integrity_check": check.value,
        "duration_ms": round(seconds * 1000),
    }


def show_plan(replica: ReplicaOf, path: Path, plan: RestorePreview | list[BackupFile], *, as_json: bool) -> None:
    """Print what would be read, for `--dry-run`."""
    if isinstance(plan, RestorePreview):
        _show_preview(replica, path, plan, as_json=as_json)
    elif as_json:
        files = [
            {"name": file.key, "size": file.size, "timestamp": format_time(file.modified_ms, timespec="seconds")}
            for file in plan
        ]
        output.print_json({**_places(replica, path), "generation": plan[0].generation, "files": files})
    else:
        rows = [(file.key, format_size(file.size), format_time(file.modified_ms)) for file in plan]
        output.print_table(BACKUP_COLUMNS, rows, right=("size",))
        total = format_size(sum(file.size for file in plan))
        output.note(f"a backup by Litestream 0.3, generation {plan[0].generation}, would be written from {total}")


def _show_preview(replica: ReplicaOf, path: Path, plan: RestorePreview, *, as_json: bool) -> None:
    if as_json:
        output.print_json(_plan_record(replica, path, plan))
        return
    rows = [
        (
            read.info.level,
            format_name(read.info.min_txid, read.info.max_txid),
            format_size(read.info.size),
            "all" if read.whole else format_size(read.bytes),
            read.requests,
        )
        for read in plan.reads
    ]
    output.print_table(PLAN_COLUMNS, rows, right=("level", "size", "read", "requests"))
    reading = f"{format_size(plan.bytes)} in {sum(read.requests for read in plan.reads)} requests"
    output.note(f"TXID {format_txid(plan.txid)}, {format_size(plan.size)}, would be written from {reading}")


def _places(replica: ReplicaOf, path: Path) -> dict[str, Any]:
    source = str(replica.database or redacted(replica.url))
    return {"source": source, "target_path": str(path), "replica": redacted(replica.url)}


def _plan_record(replica: ReplicaOf, path: Path, plan: RestorePreview) -> dict[str, Any]:
    """The keys of `litestream restore -dry-run -json`, and the bytes and requests of each file."""
    return {
        **_places(replica, path),
        "min_txid": format_txid(min(read.info.min_txid for read in plan.reads)),
        "max_txid": format_txid(plan.txid),
        "bytes": plan.size,
        "bytes_read": plan.bytes,
        "files": [
            record(read.info)
            | {
                "name": format_name(read.info.min_txid, read.info.max_txid),
                "bytes_read": read.bytes,
                "requests": read.requests,
                "whole": read.whole,
            }
            for read in plan.reads
        ],
    }
