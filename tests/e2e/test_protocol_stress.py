"""The WAL protocol alone, as fast as it goes: clients in tight loops while the mount advances, backfills and restarts.

Two races of read-only clients are closed by the floor mark and by the WRITE lock that is never given up. Started with
`--no-floor-mark` or `--hold-write-lock-briefly`, `tests.helpers.protocol_mount` shows each of them: the first after
a few million transactions, the second more rarely.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from litereplica.fuse import mountpoint as mountpoints

END_DEADLINE_S = 30.0
KINDS = ("stdlib", "apsw", "apsw-mmap")


@dataclass(frozen=True, slots=True)
class Outcome:
    """`mount`: what the mount did; `clients`: what each client saw."""

    mount: dict[str, Any]
    clients: list[dict[str, Any]]


@contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A module of ours in a process of its own, which has said that it is ready; killed when the block is left."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdin, process.stdout:
            assert process.stdout.readline() == "ready\n"
            yield process
    finally:
        try:
            process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


@contextmanager
def protocol_mount(path: Path, advances: int) -> Iterator[subprocess.Popen[str]]:
    """A scripted mount; gone when the block is left."""
    path.mkdir()
    try:
        with child("tests.helpers.protocol_mount", str(path), str(advances)) as process:
            yield process
    finally:
        if mountpoints.mount_at(path) is not None:
            mountpoints.unmount(path, lazy=True)


def stress(path: Path, *, advances: int) -> Outcome:
    """Six clients during so many advances."""
    with protocol_mount(path, advances) as mount, ExitStack() as stack:
        clients = [
            stack.enter_context(child("tests.helpers.hot_client", str(path / "app.db"), kind)) for kind in 2 * KINDS
        ]
        assert mount.stdin is not None
        assert mount.stdout is not None
        print("go", file=mount.stdin, flush=True)
        done = json.loads(mount.stdout.readline())
        for client in clients:
            client.terminate()
        seen = [json.loads(client.stdout.readline()) for client in clients if client.stdout is not None]
    return Outcome(done, seen)


def check(outcome: Outcome, *, advances: int, distinct: int) -> None:
    assert outcome.mount["txid"] == advances + 1
    assert len(outcome.clients) == 2 * len(KINDS)
    for client in outcome.clients:
        assert client["errors"] == {}, outcome
        assert client["last"] == advances + 1
        assert client["distinct"] > distinct, outcome


def test_six_clients_in_tight_loops_see_no_error_during_1000_advances(tmp_path: Path) -> None:
    check(stress(tmp_path / "mnt", advances=1_000), advances=1_000, distinct=50)


@pytest.mark.slow
def test_six_clients_in_tight_loops_see_no_error_during_20000_advances(tmp_path: Path) -> None:
    outcome = stress(tmp_path / "mnt", advances=20_000)
    check(outcome, advances=20_000, distinct=1_000)
    assert outcome.mount["restarts"] >= 1
