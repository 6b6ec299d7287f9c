"""Frames that go from file to file as they are, against pages that are decoded and encoded again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.errors import LTXError
from litereplica.format import ltx
from litereplica.format.compactor import FramesInput, compact
from litereplica.format.decoder import Decoder, decode_file
from litereplica.format.encoder import Encoder
from litereplica.testing.ltx_files import compaction_input
from tests.format.builders import UNTIMED, CraftedFile, Pages, encoded, files, legacy_frame, make_header, make_page
from tests.format.test_compactor import File, histories


def frames_of(data: bytes, sizes: list[int]) -> Iterator[list[tuple[int, bytes]]]:
    """The frames of a file that arrives in chunks of these sizes, in turn."""
    decoder, position = Decoder(), 0
    for size in itertools.cycle(sizes):
        yield decoder.feed_frames(data[position : position + size])
        position += size
        if position >= len(data):
            break
    decoder.finish()


@UNTIMED
@given(files(), st.lists(st.integers(1, 700), min_size=1, max_size=5))
def test_frames_are_those_of_the_file(file: tuple[ltx.Header, Pages], sizes: list[int]) -> None:
    data = encoded(file)
    index = decode_file(data).index
    found = [item for batch in frames_of(data, sizes) for item in batch]
    offsets = zip(index.pgno.tolist(), index.offset.tolist(), index.size.tolist(), strict=True)
    assert found == [(pgno, data[offset : offset + size]) for pgno, offset, size in offsets]


@UNTIMED
@given(histories(), st.lists(st.integers(1, 2000), min_size=1, max_size=4))
def test_frames_are_merged_as_pages_are(history: list[File], sizes: list[int]) -> None:
    """Whatever comes at a time. The bytes are the same, since one compressor made all of them."""
    pages = [compaction_input(header, iter(pages.items())) for header, pages in history]
    frames = [FramesInput(file[0], frames_of(encoded(file), sizes)) for file in history]
    assert b"".join(compact(frames)) == b"".join(compact(pages))


def test_legacy_frames_become_usual_ones() -> None:
    pages = {pgno: make_page(pgno)[:400].ljust(512, b"-") for pgno in range(1, 8)}
    data = CraftedFile(make_header(txids=(1, 1), commit=7).encode(), [legacy_frame(*each) for each in pages.items()])
    found = [item for batch in frames_of(data.build(), [300]) for item in batch]
    assert {pgno: ltx.decode_frame(frame, pgno=pgno, page_size=512) for pgno, frame in found} == pages
    assert all(ltx.decode_frame_header(frame, 0)[1] == ltx.FRAME_HAS_SIZE for _, frame in found)


@pytest.mark.parametrize("wrong", ["pgno", "cut", "payload", "legacy", "order", "above"])
def test_frame_that_is_not_right_is_not_written(wrong: str) -> None:
    page = make_page(1)[:400].ljust(512, b"-")
    frame = ltx.encode_frame(3, page)
    match wrong:
        case "pgno":
            items = [(2, frame)]
        case "cut":
            items = [(3, frame[:-1])]
        case "payload":
            items = [(3, frame[:-1] + bytes([frame[-1] ^ 1]) + b"?")]
        case "legacy":
            items = [(3, legacy_frame(3, page).written)]
        case "order":
            items = [(3, frame), (3, frame)]
        case _:
            items = [(11, ltx.encode_frame(11, page))]
    encoder = Encoder(make_header())
    encoder.start()
    with pytest.raises(LTXError):
        list(encoder.frames(items))
