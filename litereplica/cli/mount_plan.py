"""What `litereplica mount` is to mount, as the command passes it to the process that becomes the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from litereplica.cli.mount_prefix import Selection
from litereplica.cli.point import Point
from litereplica.cli.replica_of import ReplicaOf
from litereplica.fuse.options import MountOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPlan:
    """What is mounted. `every` is True for a prefix, False for one database, None if the store tells."""

    options: MountOptions
    replica: ReplicaOf
    selection: Selection
    every: bool | None
    point: Point
    cache: Path
    cache_size: int
    wait_s: float
    hydrate: str | None
