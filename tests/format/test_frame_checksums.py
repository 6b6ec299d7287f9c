"""The object with the sums of a file: what it finds, and what of itself it does not take for right."""

from __future__ import annotations

import numpy as np
import pytest

from litereplica.errors import FormatError
from litereplica.format import frame_checksums
from litereplica.format.decoder import decode_file
from litereplica.format.encoder import Encoder
from litereplica.format.frame_checksums import (
    SEGMENT_FRAMES,
    ChecksumsHead,
    FrameChecksumsEncoder,
    crc32c,
    wrong_frames,
)
from litereplica.format.ltx import HEADER_SIZE, TAIL_SIZE, Header, decode_index_size
from litereplica.testing.ltx_files import encode_file
from tests.helpers.history import sums_of_file

PAGES = 40
HEADER = Header(page_size=512, commit=PAGES, min_txid=1, max_txid=3, timestamp_ms=1_700_000_000_000)


def page(pgno: int) -> bytes:
    return np.random.default_rng(pgno).bytes(300).ljust(512, b"\0")


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_checksums, "SEGMENT_FRAMES", 16)


def file() -> bytes:
    return encode_file(HEADER, [(pgno, page(pgno)) for pgno in range(1, PAGES + 1)])


def all_sums(body: bytes, beside: bytes) -> list[int]:
    head = ChecksumsHead.decode(beside)
    numbers = range(-(-head.frames // frame_checksums.SEGMENT_FRAMES))
    places = [head.segment_place(number) for number in numbers]
    segments = [head.decode_segment(i, beside[start:stop]) for i, (start, stop) in enumerate(places)]
    return np.concatenate(segments).tolist()  # type: ignore[no-any-return]


def varints(body: bytes) -> bytes:
    size = decode_index_size(body[-TAIL_SIZE:], file_size=len(body))
    return body[-TAIL_SIZE - size : -TAIL_SIZE]


def test_the_pieces_of_an_encoder_give_the_sums_of_the_file(short_segments: None) -> None:
    encoder, summing = Encoder(HEADER), FrameChecksumsEncoder()
    pieces = [encoder.start(), *(encoder.page(pgno, page(pgno)) for pgno in range(1, PAGES + 1)), encoder.finish()]
    for piece in pieces:
        summing.feed(piece)
    body = b"".join(pieces)
    beside = summing.finish()
    assert beside == sums_of_file(body)
    opened = decode_file(body)
    head = ChecksumsHead.decode(beside)
    assert (head.frames, head.file_checksum) == (PAGES, opened.file_checksum)
    assert (head.header_checksum, head.index_checksum) == (crc32c(body[:HEADER_SIZE]), crc32c(varints(body)))
    offsets, sizes = opened.index.offset.tolist(), opened.index.size.tolist()
    assert all_sums(body, beside) == [crc32c(body[o : o + s]) for o, s in zip(offsets, sizes, strict=True)]


def test_every_flipped_bit_of_a_file_is_found(short_segments: None) -> None:
    """Wherever it is: in the header, a frame, the index; the trailer's is another file's checksum."""
    body = file()
    beside = sums_of_file(body)
    head, index = ChecksumsHead.decode(beside), decode_file(body).index
    offsets, sizes, expected = index.offset.tolist(), index.size.tolist(), all_sums(body, beside)
    index_start = index.frames_end + 6
    for place in [*range(HEADER_SIZE), *range(HEADER_SIZE, index.frames_end, 7), *range(index_start, len(body) - 24)]:
        for bit in range(8):
            flipped = bytearray(body)
            flipped[place] ^= 1 << bit
            wrong = bytes(flipped)
            rows = wrong_frames(wrong, offsets, sizes, list(expected))
            described = (crc32c(wrong[:HEADER_SIZE]), crc32c(wrong[index_start : len(body) - TAIL_SIZE])) == (
                head.header_checksum,
                head.index_checksum,
            )
            if HEADER_SIZE <= place < index.frames_end:
                (row,) = rows
                assert offsets[row] <= place < offsets[row] + sizes[row]
                assert described
            else:
                assert not rows
                assert not described


def test_every_flipped_bit_of_the_sums_is_found(short_segments: None) -> None:
    body = file()
    beside = sums_of_file(body)
    for place in range(len(beside)):
        for bit in range(8):
            wrong = bytearray(beside)
            wrong[place] ^= 1 << bit
            with pytest.raises(FormatError):
                all_sums(body, bytes(wrong))


def test_every_truncation_of_the_sums_is_found(short_segments: None) -> None:
    body = file()
    beside = sums_of_file(body)
    for size in range(len(beside)):
        with pytest.raises(FormatError):
            all_sums(body, beside[:size])


def test_segments_are_taken_in_their_own_place_and_of_their_own_file_only(short_segments: None) -> None:
    body = file()
    beside = sums_of_file(body)
    head = ChecksumsHead.decode(beside)
    (a, b), (c, d) = head.segment_place(0), head.segment_place(1)
    assert b - a == d - c
    with pytest.raises(FormatError, match="segment 0"):
        head.decode_segment(0, beside[c:d])
    other = ChecksumsHead(head.frames, head.file_checksum ^ 1, head.header_checksum, head.index_checksum)
    with pytest.raises(FormatError, match="of another file"):
        other.decode_segment(0, beside[a:b])


def test_a_frame_without_a_sum_passes() -> None:
    assert wrong_frames(b"abcdef", [0, 3], [3, 3], [None, 0]) == [1]


def test_a_segment_of_the_usual_size_is_small_beside_its_frames() -> None:
    head = ChecksumsHead(3 * SEGMENT_FRAMES, 1, 2, 3)
    start, stop = head.segment_place(1)
    assert stop - start < 0.01 * SEGMENT_FRAMES * 512
