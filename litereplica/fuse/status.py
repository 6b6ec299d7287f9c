"""The content of a mount's status file, as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping

import litereplica
from litereplica.fuse.options import MountOptions
from litereplica.fuse.state import MountState


def status(options: MountOptions, **parts: object) -> bytes:
    """Who mounts what, where, with what each part says."""
    about = {
        "pid": os.getpid(),
        "version": litereplica.__version__,
        "url": options.url,
        "mountpoint": str(options.path),
        "name": options.name,
    }
    return (json.dumps(about | {name: _plain(part) for name, part in parts.items()}, indent=2) + "\n").encode()


def public_status(state: MountState | None) -> bytes:
    """What users may know who can only read the database, if one is open: no URL, path, process or error."""
    return (json.dumps({} if state is None else state.public(), indent=2) + "\n").encode()


def _plain(record: object) -> object:
    """Statistics as JSON has them."""
    if dataclasses.is_dataclass(record):
        return {field.name: _plain(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): _plain(value) for key, value in record.items()}
    if isinstance(record, list):
        return [_plain(each) for each in record]
    return record
