"""What the names of past states mean; their times are tested in `tests/test_times.py`."""

from __future__ import annotations

import pytest

from litereplica.errors import UsageError
from litereplica.fuse.at_names import Wanted, parse, txid_name
from litereplica.fuse.names import AT_NAME, check_database_name


@pytest.mark.parametrize("txid", [1, 42, 2**64 - 1])
def test_a_txid_has_one_name(txid: int) -> None:
    assert parse(txid_name(txid)) == Wanted(txid=txid)
    assert len(txid_name(txid)) == len("txid-") + 16


@pytest.mark.parametrize(
    "name",
    [
        "",
        "2026-11-22",
        "2026-11-22T12:00:00",
        "2026-11-22T12:00:00Z ",
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
