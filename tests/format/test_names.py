"""Names of files and levels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.errors import LTXError
from litereplica.format import names
from litereplica.format.names import Layout
from tests.format.builders import UNTIMED

txids = st.integers(1, 2**63 - 1)


@UNTIMED
@given(txids, txids)
def test_parse_is_the_inverse_of_format(a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert names.parse_name(names.format_name(low, high)) == (low, high)
    assert names.parse_txid(names.format_txid(a)) == a


@pytest.mark.parametrize(
    ("layout", "key"),
    [
        (Layout.S3, "0009/0000000000000001-00000000000000ff.ltx"),
        (Layout.FILE, "ltx/9/0000000000000001-00000000000000ff.ltx"),
    ],
)
def test_keys_are_those_of_litestream(layout: Layout, key: str) -> None:
    assert names.file_key(layout, 9, 1, 255) == key


@pytest.mark.parametrize(
    "name",
    [
        "",
        "lock.json",
        "0000000000000001-0000000000000001.ltx.tmp",
        "0000000000000001-0000000000000001.LTX",
        "0000000000000001-0000000000000001.ltx\n",
        "0000000000000001-000000000000000A.ltx",
        "0000000000000001-0000000000000001",
        "000000000000001-0000000000000001.ltx",
        "00000000000000001-0000000000000001.ltx",
        "../0000000000000001-0000000000000001.ltx",
        "0000000000000002-0000000000000001.ltx",
        "0000000000000000-0000000000000001.ltx",
        "٠000000000000001-0000000000000001.ltx",
        "0x00000000000001-0000000000000001.ltx",
    ],
)
def test_other_names_are_nobodys(name: str) -> None:
    assert names.parse_name(name) is None


@UNTIMED
@given(st.text(max_size=40))
def test_any_text_is_a_name_or_none(text: str) -> None:
    parsed = names.parse_name(text)
    assert parsed is None or names.format_name(*parsed) == text


@pytest.mark.parametrize(
    "text", ["", "1", "000000000000000G", "0000000000000001 ", "00000000000000001", "+000000000000001"]
)
def test_other_txids_are_refused(text: str) -> None:
    with pytest.raises(LTXError, match="16 lower-case"):
        names.parse_txid(text)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2, 1), (1, 2**63), (1, 2**64), (-1, 1)])
def test_impossible_ranges_have_no_name(low: int, high: int) -> None:
    with pytest.raises(LTXError):
        names.format_name(low, high)


@pytest.mark.parametrize("level", [-1, 10])
def test_impossible_levels_have_no_prefix(level: int) -> None:
    with pytest.raises(LTXError, match=r"not in 0\.\.9"):
        names.level_prefix(Layout.S3, level)


NAME = f"{1:016x}-{2:016x}.ltx"


@pytest.mark.parametrize(
    ("layout", "key", "prefix"),
    [
        (Layout.S3, f"0000/{NAME}", ""),
        (Layout.S3, f"0009/{NAME}", ""),
        (Layout.S3, f"a.db/0000/{NAME}", "a.db"),
        (Layout.S3, f"deep/b.db/0001/{NAME}", "deep/b.db"),
        (Layout.S3, f"0000/0001/{NAME}", "0000"),
        (Layout.S3, f"line\nfeed/0001/{NAME}", "line\nfeed"),
        (Layout.FILE, f"ltx/0/{NAME}", ""),
        (Layout.FILE, f"x/ltx/9/{NAME}", "x"),
        (Layout.FILE, f"ltx/0/ltx/1/{NAME}", "ltx/0"),
        (Layout.S3, f"e/000a/{NAME}", None),
        (Layout.S3, f"e/0010/{NAME}", None),
        (Layout.S3, f"f/ltx/0/{NAME}", None),
        (Layout.S3, f"f/ltx/{NAME}", None),
        (Layout.S3, f"x0000/{NAME}", None),
        (Layout.S3, "a.db/lock.json", None),
        (Layout.S3, "d/0000/readme.txt", None),
        (Layout.S3, f"c/sums/0000/{NAME[:-4]}.sums", None),
        (Layout.S3, f"d/0000/{2:016x}-{1:016x}.ltx", None),
        (Layout.S3, f"d/0000/{0:016x}-{1:016x}.ltx", None),
        (Layout.FILE, f"y/0000/{NAME}", None),
        (Layout.FILE, f"y/ltx/a/{NAME}", None),
        (Layout.FILE, f"y/ltx/10/{NAME}", None),
        (Layout.FILE, NAME, None),
        (Layout.FILE, "", None),
    ],
)
def test_replica_of_a_key_is_what_lies_before_a_level_and_the_name_of_an_ltx_file(
    layout: Layout, key: str, prefix: str | None
) -> None:
    assert names.replica_prefix(layout, key) == prefix
