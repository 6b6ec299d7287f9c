"""Compaction, against applying the files one by one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.errors import LTXError
from litereplica.format import ltx
from litereplica.format.compactor import compact, compacted_header
from litereplica.testing.ltx_files import compaction_input, encode_file
from tests.format.builders import UNTIMED, Pages, decoded, fold, make_header, make_page

File = tuple[ltx.Header, Pages]


def compacted(files: list[File]) -> File:
    inputs = [compaction_input(header, iter(pages.items())) for header, pages in files]
    return decoded(b"".join(compact(inputs)))


@st.composite
def histories(draw: st.DrawFn) -> list[File]:
    """Contiguous files, overlapping at times, that grow, shrink and grow again; regrown pages are supplied."""
    snapshot = draw(st.booleans())
    files: list[File] = []
    low = reached = 1 if snapshot else draw(st.integers(2, 1000))
    commit = 0
    for number in range(draw(st.integers(1, 6))):
        new_commit = draw(st.integers(1, 9))
        grown = set(range(commit + 1, new_commit + 1))
        changed = draw(st.sets(st.integers(1, new_commit))) | grown
        if files:
            low = draw(st.integers(max(2, files[-1][0].min_txid), reached + 1))
            reached = max(low, reached + draw(st.integers(1, 3)))
        header = make_header(
            txids=(low, reached), commit=new_commit, timestamp_ms=number, wal_offset=32, wal_size=7, wal_salt1=number
        )
        files.append((header, {pgno: make_page(100 * number + pgno) for pgno in sorted(changed)}))
        commit = new_commit
    return files


@UNTIMED
@given(histories())
def test_result_is_the_fold_of_its_inputs(files: list[File]) -> None:
    header, pages = compacted(files)
    assert (pages, header.commit) == fold(files)
    first, last = files[0][0], files[-1][0]
    assert header == make_header(
        txids=(first.min_txid, last.max_txid), commit=last.commit, timestamp_ms=last.timestamp_ms
    )


@UNTIMED
@given(histories(), st.data())
def test_compacting_in_steps_makes_the_same_file_as_at_once(files: list[File], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(files)))
    steps = [compacted(files[:cut]), *files[cut:]]
    assert compacted(steps) == compacted(files)


def change(txid: int, *pgnos: int, commit: int = 5, last: int | None = None, page_size: int = 512) -> File:
    header = make_header(txids=(txid, last or txid), commit=commit, page_size=page_size)
    return header, {pgno: make_page(1000 * txid + pgno, page_size) for pgno in pgnos}


def test_last_writer_of_a_page_wins() -> None:
    files = [change(2, 1, 2, 3), change(3, 2), change(4, 1, 5)]
    _, pages = compacted(files)
    assert pages == {1: files[2][1][1], 2: files[1][1][2], 3: files[0][1][3], 5: files[2][1][5]}


def test_pages_above_the_final_commit_are_dropped() -> None:
    assert list(compacted([change(2, 1, 4, 5), change(3, 1, commit=4)])[1]) == [1, 4]


def test_a_page_cut_off_in_between_is_dropped_although_the_database_grew_again() -> None:
    files = [change(2, 1, 4, 5), change(3, 1, commit=3), change(4, 4, commit=5)]
    _, pages = compacted(files)
    assert list(pages) == [1, 4]
    assert pages[4] == files[2][1][4]


def test_snapshot_that_would_miss_a_regrown_page_is_refused() -> None:
    files = [change(1, 1, 2, 3, commit=3), change(2, 1, commit=2), change(3, 1, commit=3)]
    with pytest.raises(LTXError, match="snapshot has 2 pages, expected 3"):
        compacted(files)


def test_a_single_input_loses_only_its_wal_fields() -> None:
    header, pages = compacted([(make_header(wal_offset=32, wal_size=5, wal_salt2=1, node_id=3), {2: make_page(2)})])
    assert (header, pages) == (make_header(node_id=3), {2: make_page(2)})


@pytest.mark.parametrize(("node_ids", "result"), [((5, 5, 5), 5), ((5, 5, 6), 0), ((0, 5, 5), 0), ((0, 0, 0), 0)])
def test_the_result_has_the_node_id_that_all_inputs_have(node_ids: tuple[int, ...], result: int) -> None:
    headers = [make_header(txids=(txid, txid), node_id=each) for txid, each in enumerate(node_ids, 1)]
    assert compacted_header(headers).node_id == result


@pytest.mark.parametrize(
    ("second", "contiguous"),
    [((5, 6), True), ((4, 6), True), ((2, 6), True), ((1, 6), True), ((6, 6), False), ((4, 4), False), ((2, 3), False)],
)
def test_inputs_are_contiguous_or_overlap_and_carry_on(second: tuple[int, int], contiguous: bool) -> None:
    headers = [make_header(txids=(2, 4)), make_header(txids=second)]
    if contiguous:
        assert compacted_header(headers) == make_header(txids=(2, 6))
    else:
        with pytest.raises(LTXError, match=r"0000000000000002-0000000000000004, then .*: not contiguous"):
            compacted_header(headers)


def test_unlike_page_sizes_are_refused_before_any_byte() -> None:
    files = [change(2, 1), change(3, 1, page_size=1024)]
    with pytest.raises(LTXError, match="page sizes 512 and 1024"):
        compact([compaction_input(header, iter(pages.items())) for header, pages in files])


def test_no_input_is_refused() -> None:
    with pytest.raises(LTXError, match="no input"):
        compact([])


@pytest.mark.parametrize("pgnos", [(2, 1), (3, 3), (0,)])
def test_an_input_out_of_order_is_refused(pgnos: tuple[int, ...]) -> None:
    bad = compaction_input(make_header(), [(pgno, make_page(pgno)) for pgno in pgnos])
    with pytest.raises(LTXError, match="compaction input has page"):
        b"".join(compact([bad]))


def test_a_failure_at_the_end_of_an_input_reaches_the_caller_even_when_its_last_pages_are_dropped() -> None:
    def damaged() -> Iterator[tuple[int, bytes]]:
        yield from [(1, make_page(1)), (5, make_page(5))]
        raise LTXError("checksum")

    inputs = [compaction_input(make_header(), damaged()), compaction_input(make_header(txids=(3, 3), commit=1), [])]
    with pytest.raises(LTXError, match="checksum"):
        b"".join(compact(inputs))


def test_memory_does_not_follow_the_pages() -> None:
    count = 20_000

    def pages(step: int) -> Iterator[tuple[int, bytes]]:
        for pgno in range(step, count + 1, step):
            yield pgno, bytes([step]) * 512

    inputs = [
        compaction_input(make_header(txids=(txid, txid), commit=count), pages(step))
        for txid, step in ((2, 1), (3, 2), (4, 3))
    ]
    tracemalloc.start()
    try:
        size = sum(len(piece) for piece in compact(inputs))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 20 * count
    assert peak < 5 << 20


def test_result_is_the_file_that_the_encoder_makes_of_the_fold() -> None:
    files = [change(2, 1, 2), change(3, 2, 4)]
    inputs = [compaction_input(header, pages.items()) for header, pages in files]
    expected = encode_file(make_header(txids=(2, 3), commit=5), sorted(fold(files)[0].items()))
    assert b"".join(compact(inputs)) == expected
