"""Many frames at once: as one by one, errors included."""

from __future__ import annotations

import lz4.frame
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from litereplica.errors import LTXError
from litereplica.format import ltx
from litereplica.format.frames import decode_frames

PAGE_SIZE = 1024


def usual(pgno: int) -> bytes:
    payload = ltx.compress_page(np.random.default_rng(pgno).bytes(PAGE_SIZE // 2).ljust(PAGE_SIZE, b"\0"))
    return ltx.encode_frame_head(pgno, len(payload)) + payload


def legacy(pgno: int) -> bytes:
    return pgno.to_bytes(4, "big") + bytes(2) + bytes(lz4.frame.compress(bytes(PAGE_SIZE)))


def one_by_one(data: bytes, offsets: list[int], sizes: list[int], pgnos: list[int]) -> list[bytes | str]:
    found: list[bytes | str] = []
    for offset, size, pgno in zip(offsets, sizes, pgnos, strict=True):
        try:
            found.append(ltx.decode_frame(data[offset : offset + size], pgno=pgno, page_size=PAGE_SIZE))
        except LTXError as exc:
            found.append(exc.message)
    return found


def at_once(data: bytes, offsets: list[int], sizes: list[int], pgnos: list[int]) -> list[bytes | str]:
    decoded = decode_frames(data, offsets, sizes, pgnos, page_size=PAGE_SIZE)
    return [page if isinstance(page, bytes) else page.message for page in decoded]


def layout(frames: list[bytes]) -> tuple[list[int], list[int]]:
    sizes = [len(frame) for frame in frames]
    return [sum(sizes[:i]) for i in range(len(sizes))], sizes


def test_frames_of_both_kinds_give_their_pages() -> None:
    frames = [usual(1), legacy(2), usual(7)]
    offsets, sizes = layout(frames)
    decoded = at_once(b"".join(frames), offsets, sizes, [1, 2, 7])
    assert decoded == one_by_one(b"".join(frames), offsets, sizes, [1, 2, 7])
    assert [len(page) for page in decoded] == [PAGE_SIZE] * 3
    assert decoded[1] == bytes(PAGE_SIZE)


def test_a_frame_of_page_0_is_none() -> None:
    frame = ltx.encode_frame_head(0, len(usual(1)) - 10) + usual(1)[10:]
    assert at_once(frame, [0], [len(frame)], [0]) == one_by_one(frame, [0], [len(frame)], [0])
    assert isinstance(at_once(frame, [0], [len(frame)], [0])[0], str)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_what_is_wrong_with_a_frame_is_found_and_the_others_are_not_affected(data: st.DataObject) -> None:
    frames = [usual(1), legacy(2), usual(3)]
    offsets, sizes = layout(frames)
    body = bytearray(b"".join(frames))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    pgnos = data.draw(st.sampled_from([[1, 2, 3], [1, 2, 4], [0, 2, 3]]))
    short = bytes(body[:cut])
    assert at_once(bytes(body), offsets, sizes, pgnos) == one_by_one(bytes(body), offsets, sizes, pgnos)
    assert at_once(short, offsets, sizes, pgnos) == one_by_one(short, offsets, sizes, pgnos)
