"""What `litereplica status REPLICA_URL` shows: the newest TXID of a replica, its lease and its files."""

from __future__ import annotations

from typing import Any

import click

from litereplica.cli import output
from litereplica.cli.on_store import run_on_store
from litereplica.errors import DamagedFile, NoReplica, NotFound
from litereplica.ltxstore.lease_record import LOCK_KEY, MAX_LEASE_BYTES, Lease
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.base import ByteRange
from litereplica.storage.url import parse_url, redacted
from litereplica.times import format_duration, format_time, wall_clock_ms


def show_replica(url: str, *, as_json: bool) -> None:
    """Print the state of the replica at a URL. Raises `NoReplica`, and the errors of the store."""
    parse_url(url)
    status = run_on_store(url, _replica_status)
    if as_json:
        output.print_json(status)
        return
    lease = status["lease"]
    output.print_table(
        ("what", "value"),
        [
            ("replica", status["url"]),
            ("newest TXID", status["txid"] or ""),
            ("published", status["timestamp"] or ""),
            ("lease", "not held" if lease is None else lease.get("damaged") or _lease_text(lease)),
        ],
    )
    click.echo()
    output.print_table(
        ("level", "files", "bytes", "min_txid", "max_txid"),
        [tuple(level.values()) for level in status["levels"]],
        right=("level", "files", "bytes"),
    )


def _lease_text(lease: dict[str, Any]) -> str:
    left_ms = lease["left_ms"]
    when = (
        f"expires in {format_duration(round(left_ms / 1000))}" if left_ms > 0 else f"expired at {lease['expires_at']}"
    )
    return f"{lease['owner'] or 'another program'}, generation {lease['generation']}, {when}"


async def _replica_status(store: LTXStore) -> dict[str, Any]:
    files = await store.list_levels()
    lease = await _lease(store)
    if not files and lease is None:
        raise NoReplica(f"there are no LTX files in {redacted(store.url)}", hint="check the URL; it names one database")
    newest = max(files, key=lambda info: (info.max_txid, -info.level), default=None)
    levels = []
    for level in sorted({info.level for info in files}):
        own = [info for info in files if info.level == level]
        levels.append(
            {
                "level": level,
                "files": len(own),
                "size_bytes": sum(info.size for info in own),
                "min_txid": f"{min(info.min_txid for info in own):016x}",
                "max_txid": f"{max(info.max_txid for info in own):016x}",
            }
        )
    return {
        "url": store.url,
        "txid": None if newest is None else f"{newest.max_txid:016x}",
        "timestamp": None if newest is None else _time(newest.modified_ms),
        "lease": lease,
        "levels": levels,
    }


async def _lease(store: LTXStore) -> dict[str, Any] | None:
    try:
        blob = await store.storage.get(LOCK_KEY, ByteRange(0, MAX_LEASE_BYTES + 1))
        lease = Lease.decode(blob.data)
    except NotFound:
        return None
    except DamagedFile as exc:
        return {"damaged": str(exc)}
    return {
        "owner": lease.owner,
        "generation": lease.generation,
        "expires_at": format_time(lease.expires_ms),
        "left_ms": lease.expires_ms - wall_clock_ms(),
    }


def _time(milliseconds: int) -> str:
    return format_time(milliseconds) if milliseconds else ""
