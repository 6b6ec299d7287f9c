"""Metrics: names, labels and values, also for names that somebody chose to break the scrape."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from litereplica.web.families import BOTH, COUNTER, FAMILIES, UNTYPED
from litereplica.web.metrics import exposition
from tests.helpers.site_source import SiteSource, record

OPERATIONS = Path(__file__).parents[2] / "docs/OPERATIONS.md"

Values = dict[tuple[str, ...], float]


def scraped(source: SiteSource) -> dict[str, Values]:
    """Samples by name, then by the values of their labels. Fails for a duplicate, as Prometheus does."""
    found: dict[str, Values] = {}
    for family in text_string_to_metric_families(exposition(source.document()).decode()):
        for sample in family.samples:
            values = found.setdefault(sample.name, {})
            labels = tuple(sample.labels.values())
            assert labels not in values, sample
            values[labels] = sample.value
    return found


def test_names_are_unique_and_of_the_usual_form() -> None:
    names = [family.name for family in FAMILIES]
    assert len(names) == len(set(names))
    for family in FAMILIES:
        assert re.fullmatch(r"lite(replica|stream)_[a-z_]+", family.name)
        is_ours = family.name.startswith("litereplica_")
        assert (family.kind == COUNTER) == family.name.endswith("_total"), family.name
        assert not (is_ours and family.kind == UNTYPED), family.name


def test_documentation_has_the_table() -> None:
    """The rows are in the order of the code; a failure shows them as they are to be."""
    rows = []
    for each in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        rows.append(f"| `{each.name}` | {each.kind} | {labels} | {each.of} | {each.help} |")
    told = [line for line in OPERATIONS.read_text().splitlines() if line.startswith("| `lite")]
    assert told == rows, "\n".join(rows)


def test_values_are_those_of_the_records(tmp_path: Path) -> None:
    database = tmp_path / "app.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript("PRAGMA journal_mode = wal; CREATE TABLE t (x);")
        path = str(database)
        changes = {"lag_ms": 1500, "unpublished_bytes": 77, "error": "no answer", "state": "failed", "lease": None}
        found = scraped(SiteSource([record(path, **changes), record("/gone", state="gone"), record("/b")]))
        sizes = database.stat().st_size, database.with_name("app.db-wal").stat().st_size
    assert found["litereplica_lag_seconds"] == {(path,): 1.5, ("/b",): 0}
    assert found["litereplica_behind_bytes"] == {(path,): 77, ("/b",): 0}
    assert found["litereplica_error"] == {(path,): 1, ("/b",): 0}
    assert found["litereplica_state"] == {(path, "failed"): 1, ("/b", "active"): 1}
    assert found["litereplica_databases"] == {("failed",): 1, ("active",): 1}
    assert found["litereplica_lease_generation"] == {("/b",): 7}
    assert found["litestream_txid"] == {(path,): 42, ("/b",): 42}
    assert (found["litestream_db_size"], found["litestream_wal_size"]) == ({(path,): sizes[0]}, {(path,): sizes[1]})
    assert found["litestream_sync_seconds"][(path,)] == 1.5
    assert found["litereplica_requests_total"] == {("replicate", "s3://backups"): 49}
    assert found["litereplica_cost_usd_total"] == {("replicate", "s3://backups"): 0.0002128}
    assert found["litestream_replica_operation_total"] == {("GET", "s3"): 7, ("PUT", "s3"): 42}
    assert found["litestream_replica_operation_errors_total"] == {("TransientStorageError", "PUT", "s3"): 1}
    assert "process_resident_memory_bytes" in found
    assert "litereplica_readers" not in found
    assert {family.name for family in FAMILIES if family.of in (BOTH, "writer")} <= found.keys()


def test_names_chosen_to_break_the_scrape_do_not() -> None:
    hostile = ['a"} 1\nlitereplica_error{db="x"} 1 #', "\\", "\n", "\udcff", "\\udcff", "{}", "é", "a\rb", "\u2028"]
    found = scraped(SiteSource([record(name) for name in [*hostile, hostile[0]]]))
    assert found["litereplica_error"].keys() >= {("\\",), ("\\n",), ("\\udcff",), ("é",), ("a\\rb",)}
    assert len(found["litereplica_error"]) == len(hostile) - 1, "two look the same"


@pytest.mark.slow
def test_a_daemon_without_an_address_imports_nothing_of_this() -> None:
    program = (
        "import sys, litereplica.cli.replicate, litereplica.cli.mount_run, litereplica.fuse.prefix_mount\n"
        "print([name for name in sys.modules if name.startswith(('prometheus', 'litereplica.web'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
