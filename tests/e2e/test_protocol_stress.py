"""The WAL protocol alone, as fast as it goes: clients in tight loops while the mount advances, backfills and restarts.

Two races of read-only clients are closed by the floor mark and by the WRITE lock that is never given up. Started with
`--no-floor-mark` or `--hold-write-lock-briefly`, `tests.helpers.protocol_mount` shows each of them: the first after
a few million transactions, the second more rarely.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from litereplica.fuse import mountpoint as mountpoints
from litereplica.testing.processes import Child, running_module

KINDS = ("stdlib", "apsw", "apsw-mmap")


@dataclass(frozen=True, slots=True)
class Outcome:
    """`mount`: what the mount did; `clients`: what each client saw."""

    mount: dict[str, Any]
    clients: list[dict[str, Any]]


@contextmanager
def protocol_mount(path: Path, advances: int) -> Iterator[Child]:
    """A scripted mount; gone when the block is left."""
    path.mkdir()
    try:
        with running_module("tests.helpers.protocol_mount", str(path), str(advances)) as mount:
            yield mount
    finally:
        if mountpoints.mount_at(path) is not None:
            mountpoints.unmount(path, lazy=True)


def stress(path: Path, *, advances: int) -> Outcome:
    """Six clients during so many advances."""
    with protocol_mount(path, advances) as mount, ExitStack() as stack:
        clients = [
            stack.enter_context(running_module("tests.helpers.hot_client", str(path / "app.db"), kind))
            for kind in 2 * KINDS
        ]
        mount.say("go")
        done = json.loads(mount.hear())
        for client in clients:
            client.terminate()
        seen = [json.loads(client.hear()) for client in clients]
    return Outcome(done, seen)


def check(outcome: Outcome, *, advances: int, distinct: int) -> None:
    newest = outcome.mount["txid"]
    assert newest > advances
    assert len(outcome.clients) == 2 * len(KINDS)
    for client in outcome.clients:
        assert client["errors"] == {}, outcome
        assert client["last"] == newest
        assert client["distinct"] > distinct, outcome


def test_six_clients_in_tight_loops_see_no_error_during_1000_advances(tmp_path: Path) -> None:
    check(stress(tmp_path / "mnt", advances=1_000), advances=1_000, distinct=50)


@pytest.mark.slow
def test_six_clients_in_tight_loops_see_no_error_during_20000_advances(tmp_path: Path) -> None:
    outcome = stress(tmp_path / "mnt", advances=20_000)
    check(outcome, advances=20_000, distinct=1_000)
    assert outcome.mount["restarts"] >= 1
