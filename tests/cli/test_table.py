"""Tables at any width: nothing is cut, and TXIDs and times stay whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.cli.daemon_status import mount_facts, mount_row, writer_row
from litereplica.cli.table import WHOLE, cell_width, fold, layout

TXID = "00000000000f4240"
TIME = "2026-03-01T09:30:00.123Z"
WRITER = {
    "db_path": "/srv/applications/shop/production/databases/orders.db", "state": "failed", "txid": TXID,
    "lag_ms": 93_400, "unpublished_bytes": 5 << 20, "lease": {"owner": "host-17.example.org:12345", "generation": 12},
    "error": "the store answered 503 SlowDown 14 times: s3://backups/production/orders.db?region=eu-central-1",
}  # fmt: skip
MOUNT = {
    "db_path": "/mnt/replicas/orders/orders.db", "state": "following", "txid": TXID, "lag_ms": 0, "pid": 4711,
    "url": "s3://backups/production/orders.db?region=eu-central-1&endpoint=https://s3.example.org", "timestamp": TIME,
    "readers": [{"pid": 12, "command": "python3", "txid": TXID, "since": TIME}], "newest_txid": TXID,
}  # fmt: skip

Table = tuple[Sequence[str], Sequence[Sequence[str]], Sequence[int]]

TABLES: dict[str, Table] = {
    "writers": (("database", "state", "txid", "behind", "lease", "note"), [writer_row(WRITER)] * 2, [3]),
    "mounts": (("mount", "state", "txid", "behind", "replica", "note"), [mount_row(MOUNT)], [3]),
    "mount": (("what", "value"), mount_facts(MOUNT), []),
    "ltx": (("level", "min_txid", "max_txid", "size", "timestamp"), [("0", TXID, TXID, "123456", TIME)] * 3, [0, 3]),
}


@pytest.mark.parametrize("width", [50, 80, 120])
@pytest.mark.parametrize("name", TABLES)
def test_table_fits_and_everything_is_in_it(name: str, width: int) -> None:
    columns, rows, right = TABLES[name]
    lines = layout(columns, rows, [position in right for position in range(len(columns))], width=width)
    assert max(map(cell_width, lines)) <= width
    text = [cell for row in rows for cell in row if cell]
    for cell in text:
        assert cell_width(cell) > WHOLE or any(cell in line for line in lines), "it is whole"
    for whole in (TXID, TIME):
        assert sum(line.count(whole) for line in lines) == sum(cell.count(whole) for cell in text)
    assert not Counter("".join(text)) - Counter("".join(lines)), "no character is missing"


def test_a_row_becomes_a_block_when_there_is_no_room() -> None:
    assert layout(("txid", "time"), [(TXID, TIME), (TXID, "")], [False, False], width=35) == [
        f"txid  {TXID}",
        f"time  {TIME}",
        "",
        f"txid  {TXID}",
    ]


def test_long_texts_are_folded_after_separators_and_numbers_stay_on_the_right() -> None:
    lines = layout(
        ("path", "size"), [("/srv/some/long/directory/app.db", "12"), ("/a", "1234")], [False, True], width=24
    )
    assert lines == [
        "path                size",
        "────────────────────────",
        "/srv/some/long/       12",
        "directory/app.db",
        "/a                  1234",
    ]


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs", "Mn"]), max_size=60), st.integers(2, 30))
def test_folded_text_is_the_text(text: str, width: int) -> None:
    lines = fold(text, width)
    assert "".join(lines) == text
    assert all(cell_width(line) <= width for line in lines)
