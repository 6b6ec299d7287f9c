"""What the names of past states mean."""

from __future__ import annotations

import pytest

from litereplica.errors import UsageError
from litereplica.fuse.at_names import Wanted, parse, txid_name
from litereplica.fuse.nodes import AT_NAME, check_database_name

NOON_MS = 1_795_348_800_000  # 2026-11-22T12:00:00Z


@pytest.mark.parametrize(
    ("name", "before_ms"),
    [
        ("2026-11-22T12:00:00Z", NOON_MS),
        ("2026-11-22t12:00:00z", NOON_MS),
        ("2026-11-22T12:00:00+00:00", NOON_MS),
        ("2026-11-22T13:30:00+01:30", NOON_MS),
        ("2026-11-22T04:00:00-08:00", NOON_MS),
        ("2026-11-22T12:00:00.5Z", NOON_MS + 500),
        ("2026-11-22T12:00:00.250+00:00", NOON_MS + 250),
        ("2026-11-22T12:00:00.000000001Z", NOON_MS + 1),
        ("2026-11-22T12:00:00.999999999Z", NOON_MS + 1000),
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.999Z", -1),
    ],
)
def test_a_time_is_rounded_up_to_a_millisecond(name: str, before_ms: int) -> None:
    assert parse(name.encode()) == Wanted(before_ms=before_ms)


@pytest.mark.parametrize("txid", [1, 42, 2**64 - 1])
def test_a_txid_has_one_name(txid: int) -> None:
    assert parse(txid_name(txid)) == Wanted(txid=txid)
    assert len(txid_name(txid)) == len("txid-") + 16


@pytest.mark.parametrize(
    "name",
    [
        "",
        "2026-11-22",
        "2026-11-22T12:00Z",
        "2026-11-22T12:00:00",
        "2026-11-22 12:00:00Z",
        "2026-11-22T12:00:00.Z",
        "2026-11-22T12:00:00.0000000001Z",
        "2026-11-22T12:00:60Z",
        "2026-11-22T25:00:00Z",
        "2026-02-30T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "2026-11-22T12:00:00+25:00",
        "2026-11-22T12:00:00Z ",
        "٢٠٢٦-11-22T12:00:00Z",
        "txid-",
        "txid-1",
        "txid-0000000000000000",
        "txid-00000000000000001",
        "txid-000000000000000A",
        "TXID-000000000000000a",
        "000000000000000a",
        "1 hour ago",
    ],
)
def test_whatever_can_be_misunderstood_is_no_name(name: str) -> None:
    assert parse(name.encode()) is None


def test_bytes_that_are_no_text_are_no_name() -> None:
    assert parse(b"\xff\xfe") is None


def test_no_database_can_have_the_name_of_the_directory() -> None:
    with pytest.raises(UsageError):
        check_database_name(AT_NAME)
