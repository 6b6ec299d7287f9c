"""Hydration: how soon the whole database is here, against a plain download of the file that holds it."""

from __future__ import annotations

import time

import boto3
from botocore.config import Config

from benchmarks.results import MOUNT, Comparison, Goal, Result, series
from benchmarks.setting import Setting
from benchmarks.subjects import can_hydrate, mounted
from litereplica.storage.url import parse_url
from litereplica.testing.mounts import MountedReplica, MountError

DOWNLOAD = "boto3 download"
SINCE_READY = "mount, once ready"
LIMIT_S = 300.0
LOOK_INTERVAL_S = 0.02
"""The daemon answers, so looking more often would slow it down."""
COMPLETE = "complete"


def hydration(setting: Setting) -> tuple[Result, ...]:
    """From nothing to the whole database in the mount's cache; nothing for a version that cannot hydrate."""
    if not can_hydrate():
        return ()
    samples: dict[str, list[float]] = {MOUNT: [], SINCE_READY: [], DOWNLOAD: []}
    for _ in range(setting.scale.repeats):
        with setting.distant(setting.direct_url) as (url, _), mounted(setting, url) as ready:
            assert ready.mount is not None
            ready_at = time.perf_counter()
            wait_until_complete(ready.mount)
            since_ready_s = time.perf_counter() - ready_at
        samples[SINCE_READY].append(since_ready_s)
        samples[MOUNT].append(ready.seconds + since_ready_s)
        with setting.distant(setting.direct_url) as (url, _):
            samples[DOWNLOAD].append(_download(setting, url))
    result = Result(
        title="Hydration",
        unit="s",
        method="From nothing, and from the return of `litereplica mount`, until every page is in the mount's cache and "
        "checked; against boto3's `download_file` of the snapshot's object with its defaults (parts in parallel), its "
        "client made beforehand.",
        series=series(samples),
        comparisons=(Comparison(MOUNT, DOWNLOAD, Goal(1.2)), Comparison(SINCE_READY, DOWNLOAD)),
    )
    return (result,)


def wait_until_complete(mount: MountedReplica) -> None:
    """Return once a mount has every page. Raises `MountError`."""
    deadline = time.perf_counter() + LIMIT_S
    while mount.status()["replica"]["hydration"]["state"] != COMPLETE:
        if time.perf_counter() > deadline:
            raise MountError(f"not hydrated within {LIMIT_S:g} s: {mount.status()}")
        time.sleep(LOOK_INTERVAL_S)


def _download(setting: Setting, url: str) -> float:
    """Seconds to bring the largest object of a replica to the disk."""
    place = parse_url(url)
    path = setting.fresh_directory() / "snapshot.ltx"
    client = boto3.client(
        "s3",
        endpoint_url=place.endpoint,
        region_name=place.region,
        config=Config(s3={"addressing_style": "path"}),
    )
    try:
        listing = client.list_objects_v2(Bucket=place.bucket, Prefix=place.path)
        largest = max(listing["Contents"], key=lambda each: each["Size"])
        started = time.perf_counter()
        client.download_file(place.bucket, largest["Key"], str(path))
        return time.perf_counter() - started
    finally:
        client.close()
        path.unlink(missing_ok=True)
