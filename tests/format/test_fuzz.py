"""Whatever bytes arrive: a value or one `FormatError`, from every decoder."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litereplica.errors import FormatError
from litereplica.format import decoder, legacy, ltx, names, sqlite, uvarint, wal
from tests.format.builders import UNTIMED, CraftedFile, block_frame, craft, legacy_frame, make_header, make_page

VALID = [
    craft().build(),
    craft(make_header(txids=(1, 7), commit=4), (1, 2, 3, 4)).build(),
    CraftedFile(make_header().encode(), [legacy_frame(2, make_page(2)), block_frame(5, bytes(512))]).build(),
    CraftedFile(make_header().encode(), []).build(),
]
HEADER = make_header()
NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 256, 2**64 - 1]

DECODERS: dict[str, Callable[[bytes], object]] = {
    "file": decoder.decode_file,
    "header": ltx.Header.decode,
    "frame": lambda data: ltx.decode_frame(data, pgno=2, page_size=512),
    "frame size": lambda data: ltx.least_frame_size(data, page_size=512),
    "legacy payload": lambda data: legacy.decompress(data, pgno=2, page_size=512),
    "block payload": lambda data: ltx.decompress_block(data, pgno=2, page_size=512),
    "index": lambda data: ltx.decode_page_index(data, header=HEADER, file_size=len(data) + 1000),
    "snapshot's index": lambda data: ltx.decode_page_index(data, header=make_header(txids=(1, 2)), file_size=1),
    "index size": lambda data: ltx.decode_index_size(data, file_size=1000),
    "trailer": ltx.decode_trailer,
    "varints": lambda data: list(uvarint.decode_steps(data)),
    "database header": sqlite.DatabaseHeader.decode,
    "WAL header": wal.WALHeader.decode,
    "name": lambda data: names.parse_txid(data.decode("latin1")),
}


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid file with bytes or whole numbers replaced, pieces doubled, dropped, or taken from another file."""
    data = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["byte", "number", "drop", "double", "splice"]))
        if change == "byte":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif change == "number":
            packed = struct.pack(">Q", draw(st.sampled_from(NUMBERS)))[-draw(st.sampled_from([1, 2, 4, 8])) :]
            data[at : at + len(packed)] = packed
        else:
            piece = slice(at, at + draw(st.integers(1, 64)))
            other = draw(st.sampled_from(VALID)) if change == "splice" else data
            data[at : at if change == "double" else piece.stop] = b"" if change == "drop" else other[piece]
    return bytes(data)


@pytest.mark.parametrize("name", DECODERS)
def test_random_bytes_give_a_value_or_a_format_error(name: str) -> None:
    decode = DECODERS[name]

    @settings(UNTIMED, max_examples=150)
    @given(st.binary(max_size=900))
    def check(data: bytes) -> None:
        outcome = outcome_of(decode, data)
        assert outcome_of(decode, data) == outcome

    check()


@pytest.mark.parametrize("name", DECODERS)
def test_pieces_of_damaged_files_give_a_value_or_a_format_error(name: str) -> None:
    decode = DECODERS[name]

    @settings(UNTIMED, max_examples=150)
    @given(mutated(), st.data())
    def check(data: bytes, choice: st.DataObject) -> None:
        start = choice.draw(st.one_of(st.just(0), st.sampled_from([100, 106, 110]), st.integers(0, len(data))))
        end = choice.draw(st.one_of(st.just(len(data)), st.integers(start, max(start, len(data)))))
        outcome = outcome_of(decode, data[start:end])
        assert outcome_of(decode, data[start:end]) == outcome

    check()


def outcome_of(decode: Callable[[bytes], object], data: bytes) -> str:
    """The kind of value, or the error's message. Anything but a `FormatError` goes through."""
    try:
        return type(decode(data)).__name__
    except FormatError as exc:
        return str(exc)


@settings(UNTIMED, max_examples=400)
@given(mutated(), st.lists(st.integers(1, 400), min_size=1, max_size=3))
def test_a_damaged_file_is_refused_alike_at_once_and_in_chunks(data: bytes, sizes: list[int]) -> None:
    def in_chunks(data: bytes) -> object:
        machine, position, i = decoder.Decoder(), 0, 0
        while position < len(data):
            machine.feed(data[position : position + sizes[i % len(sizes)]])
            position += sizes[i % len(sizes)]
            i += 1
        return machine.finish()

    at_once = outcome_of(decoder.decode_file, data)
    assert (at_once == "LTXFile") == (outcome_of(in_chunks, data) == "LTXFile")


@settings(UNTIMED, max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), st.sampled_from(NUMBERS)), max_size=4),
    st.integers(0, 2),
)
def test_an_index_of_extreme_numbers_never_passes(entries: list[tuple[int, int, int]], kept: int) -> None:
    file = craft()
    file.entries = [*file.true_entries()[:kept], *entries]
    assert outcome_of(decoder.decode_file, file.build()) != "LTXFile"
