"""Every read transaction sees one TXID, whatever the client, while transactions are applied and the WAL restarts."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from litereplica.testing.mounts import MountedReplica
from litereplica.testing.processes import running_module
from tests.helpers.bank import Bank

KINDS = ("stdlib", "cli", "apsw-mmap", "holder")
TRANSACTIONS = 2_000
RESTARTS = 5
MAX_LAG = 3
"""TXIDs that the mount may be behind: a poll may bring several, but not all of them."""
DEADLINE_S = 100.0


def publish(bank: Bank, mount: MountedReplica) -> None:
    """Step by step, until enough has happened."""
    deadline = time.monotonic() + DEADLINE_S
    while bank.publisher.txid <= TRANSACTIONS or mount.statistics()["restarts"] < RESTARTS:
        assert time.monotonic() < deadline, mount.status()
        mount.wait_for(bank.step() - MAX_LAG)
    mount.wait_for(bank.publisher.txid)


@pytest.mark.slow
def test_every_transaction_of_every_reader_equals_the_ledger_at_its_txid(tmp_path: Path) -> None:
    bank = Bank.open(tmp_path)
    with (
        bank.publisher,
        MountedReplica(bank.publisher.url, tmp_path / "mount", poll_interval="10ms") as mount,
        ExitStack() as stack,
    ):
        readers = {
            kind: stack.enter_context(running_module("tests.helpers.bank", str(mount.path), kind)) for kind in KINDS
        }
        publish(bank, mount)
        statistics = mount.statistics()
        for reader in readers.values():
            reader.terminate()
        seen: dict[str, dict[str, Any]] = {kind: json.loads(reader.hear()) for kind, reader in readers.items()}
    assert statistics["advances"] >= TRANSACTIONS / (MAX_LAG + 1)
    assert statistics["restarts"] >= RESTARTS
    for kind, saw in seen.items():
        assert saw["errors"] == {}, kind
        observed = {int(counter): state for counter, state in saw["observed"].items()}
        assert observed == {counter: bank.ledger[counter] for counter in observed}, kind
        assert max(observed) == bank.publisher.txid, kind
        assert len(observed) >= (5 if kind == "holder" else 100), kind
