"""Pages in LZ4 frames, as the files of older versions have them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.errors import LTXError
from litereplica.format import legacy
from tests.format.builders import UNTIMED, CraftedFile, decoded, legacy_frame, legacy_payload, make_header, make_page

page_contents = st.sampled_from([512, 4096, 65536]).flatmap(
    lambda size: st.builds(
        lambda seed, kept: make_page(seed, size)[: kept * size // 4].ljust(size, b"z"),
        st.integers(0, 99),
        st.integers(0, 4),
    )
)
options = st.fixed_dictionaries(
    {
        "content_checksum": st.booleans(),
        "block_checksum": st.booleans(),
        "store_size": st.booleans(),
        "block_linked": st.booleans(),
        "compression_level": st.sampled_from([-5, 0, 9]),
    }
)


@UNTIMED
@given(page_contents, options, st.binary(max_size=20))
def test_payload_of_any_options_is_found_and_read(page: bytes, options: dict[str, object], behind: bytes) -> None:
    payload = legacy_payload(page, **options)
    known = {"pgno": 7, "page_size": len(page)}
    assert legacy.least_payload_size(payload + behind, **known) == len(payload)
    assert legacy.decompress(payload, **known) == page


@UNTIMED
@given(page_contents, options, st.randoms(use_true_random=False))
def test_a_cut_payload_asks_for_more_but_never_too_much(
    page: bytes, options: dict[str, object], rng: random.Random
) -> None:
    payload = legacy_payload(page, **options)
    for cut in {*range(min(30, len(payload))), rng.randrange(len(payload)), len(payload) - 1}:
        assert cut < legacy.least_payload_size(payload[:cut], pgno=7, page_size=len(page)) <= len(payload)


def test_whole_file_of_legacy_frames_is_read() -> None:
    pages = {pgno: make_page(pgno)[:400].ljust(512, b"-") for pgno in range(1, 8)}
    header = make_header(txids=(1, 1), commit=7)
    assert decoded(CraftedFile(header.encode(), [legacy_frame(*item) for item in pages.items()]).build()) == (
        header,
        pages,
    )


@UNTIMED
@given(st.binary(max_size=700), st.sampled_from([b"", b"\x04\x22\x4d\x18", legacy_payload(bytes(512))[:7]]))
def test_garbage_is_a_size_or_an_error(garbage: bytes, start: bytes) -> None:
    data = start + garbage
    try:
        size = legacy.least_payload_size(data, pgno=1, page_size=512)
    except LTXError:
        return
    if size <= len(data):
        try:
            assert len(legacy.decompress(data[:size], pgno=1, page_size=512)) == 512
        except LTXError:
            return
    assert size <= 512 + legacy.MAX_OVERHEAD + 8


@pytest.mark.parametrize("flags", [0x61, 0x62, 0xA0, 0x20, 0xE0])
def test_dictionaries_reserved_bits_and_other_versions_are_refused(flags: int) -> None:
    payload = bytearray(legacy_payload(bytes(512)))
    payload[4] = flags
    with pytest.raises(LTXError, match="frame of page 1 is not a valid LZ4 frame"):
        legacy.least_payload_size(bytes(payload), pgno=1, page_size=512)


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_payload_cut_short_is_an_error_when_it_is_all(cut: int) -> None:
    payload = legacy_payload(b"ab" * 256)
    with pytest.raises(LTXError):
        legacy.decompress(payload[:-cut], pgno=1, page_size=512)
