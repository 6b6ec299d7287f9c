"""Varints in bulk, against one at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from litereplica.errors import LTXError
from litereplica.format import uvarint
from tests.format.builders import UNTIMED, slow_uvarint, slow_uvarints


def decoded(data: bytes) -> NDArray[np.uint64]:
    """All values at once."""
    return np.concatenate(list(uvarint.decode_steps(data)))


EDGES = sorted({edge for bits in range(0, 64) for edge in (2**bits - 1, 2**bits)} | {2**64 - 1})
values_lists = st.lists(st.one_of(st.integers(0, 2**64 - 1), st.sampled_from(EDGES)), min_size=1, max_size=60)


@UNTIMED
@given(values_lists)
def test_encode_is_the_slow_encoding_of_each_value(values: list[int]) -> None:
    assert uvarint.encode(np.array(values, np.uint64)) == b"".join(map(slow_uvarint, values))


@UNTIMED
@given(values_lists)
def test_decode_is_the_inverse_of_encode(values: list[int]) -> None:
    assert decoded(b"".join(map(slow_uvarint, values))).tolist() == values


continued = st.lists(st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF])), max_size=40).map(
    bytes
)


@UNTIMED
@given(continued)
def test_any_bytes_decode_as_the_slow_twin_decodes_them(data: bytes) -> None:
    expected = slow_uvarints(data)
    if expected is None:
        with pytest.raises(LTXError):
            decoded(data)
    else:
        assert decoded(data).tolist() == expected


@pytest.mark.parametrize("edge", EDGES)
def test_every_power_of_two_survives(edge: int) -> None:
    assert decoded(uvarint.encode(np.array([edge], np.uint64))).tolist() == [edge]


@UNTIMED
@given(values_lists, st.integers(11, 40), st.booleans())
def test_the_size_of_a_step_does_not_show(values: list[int], step: int, damaged: bool) -> None:
    data = b"".join(map(slow_uvarint, values))
    if damaged:
        data = b"\xff" * 12 + data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvarint, "_STEP", step)
        assert uvarint.encode(np.array(values, np.uint64)) == b"".join(map(slow_uvarint, values))
        if damaged:
            with pytest.raises(LTXError, match="more than 64 bits"):
                decoded(data)
        else:
            assert decoded(data).tolist() == values


@pytest.mark.parametrize("data", [b"\xff" * 9 + b"\2", b"\x80" * 10 + b"\0", b"\1" + b"\x80" * 9 + b"\x7f\1"])
def test_a_varint_of_more_than_64_bits_is_refused(data: bytes) -> None:
    with pytest.raises(LTXError, match="more than 64 bits"):
        decoded(data)


def test_a_varint_longer_than_a_step_is_refused() -> None:
    with pytest.raises(LTXError, match="more than 64 bits"):
        decoded(b"\x80" * 200_000 + b"\0")


def test_two_million_entries_survive() -> None:
    values = np.arange(1, 6_000_001, dtype=np.uint64) * np.uint64(977)
    assert np.array_equal(decoded(uvarint.encode(values)), values)
