"""The content of a mount's status file, as JSON: its record as on the control socket, and `debug`, as each part has it.

The names and units in `debug` are those of the code, and change with it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import litereplica
from litereplica.fuse.state import MountState

_MONOTONIC = "_at"
"""How the names of such times end."""


def status(record: Mapping[str, Any], **parts: object) -> bytes:
    """A record, the process that answers, and what each part says."""
    about = {"kind": "mount", "pid": os.getpid(), "version": litereplica.__version__, **record}
    debug = {name: _plain(part) for name, part in parts.items()}
    return (json.dumps({**about, "debug": debug}, indent=2) + "\n").encode()


def public_status(state: MountState | None) -> bytes:
    """What users may know who can only read the database, if one is open: no URL, path, process or error."""
    return (json.dumps({} if state is None else state.public(), indent=2) + "\n").encode()


def _plain(record: object) -> object:
    """Statistics as JSON has them, without times of a clock that nobody else has."""
    if dataclasses.is_dataclass(record):
        names = (field.name for field in dataclasses.fields(record) if not field.name.endswith(_MONOTONIC))
        return {name: _plain(getattr(record, name)) for name in names}
    if isinstance(record, Mapping):
        return {str(key): _plain(value) for key, value in record.items()}
    if isinstance(record, list):
        return [_plain(each) for each in record]
    return record
