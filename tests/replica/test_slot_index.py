"""The hash table over the slots, against a dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litereplica.replica.page_key import PageKey, page_key
from litereplica.replica.slot_index import SlotIndex, key_hash, key_hashes

keys = st.builds(page_key, st.sampled_from([1 << 63, (1 << 63) + 1, (1 << 64) - 1]), st.integers(1, 40))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    slots=st.integers(1, 20),
    operations=st.lists(st.one_of(st.lists(keys, unique=True, max_size=6), keys, st.integers(0, 19)), max_size=30),
)
def test_the_table_finds_what_a_dictionary_finds(slots: int, operations: list[list[PageKey] | PageKey]) -> None:
    """Lists are written, keys are read, small numbers empty a slot; then everything is loaded anew."""
    index = SlotIndex(np.zeros(slots, np.uint64))
    model: dict[int, PageKey] = {}
    for operation in operations:
        if isinstance(operation, list):
            taken = index.take(len(operation))
            assert len(set(taken)) == len(taken) == min(len(operation), slots)
            for slot in taken:
                model.pop(slot, None)
            written = dict(zip(taken, operation, strict=False))
            index.insert(list(written), list(written.values()))
            model |= written
        elif operation < slots:
            index.remove(operation)
            model.pop(operation, None)
        else:
            for slot in index.find(operation):
                index.mark_read(slot)
        assert_equal(index, model)
    hashes = np.zeros(slots, np.uint64)
    for slot, key in model.items():
        hashes[slot] = key_hash(key)
    assert_equal(SlotIndex(hashes), model)


def test_slots_taken_together_are_different_even_when_the_turn_comes_around() -> None:
    index = SlotIndex(np.zeros(2, np.uint64))
    first = page_key(1 << 63, 1)
    index.insert(index.take(1), [first])
    index.mark_read(0)
    assert sorted(index.take(2)) == [0, 1]


def assert_equal(index: SlotIndex, model: dict[int, PageKey]) -> None:
    assert len(index) == len(model)
    checksums = np.repeat(np.array([1 << 63, (1 << 63) + 1, (1 << 64) - 1], np.uint64), 40)
    pgnos = np.tile(np.arange(1, 41, dtype=np.uint32), 3)
    expected = [page_key(*each) in model.values() for each in zip(checksums.tolist(), pgnos.tolist(), strict=True)]
    assert index.contains(checksums, pgnos).tolist() == expected
    for checksum in (1 << 63, (1 << 63) + 1, (1 << 64) - 1):
        for pgno in range(1, 41):
            key = page_key(checksum, pgno)
            assert sorted(index.find(key)) == sorted(slot for slot, held in model.items() if held == key)


@given(checksums=st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=8), pgno=st.integers(1, (1 << 32) - 1))
def test_the_hash_of_an_array_is_that_of_each_key(checksums: list[int], pgno: int) -> None:
    hashes = key_hashes(np.array(checksums, np.uint64), np.full(len(checksums), pgno, np.uint32))
    assert hashes.tolist() == [key_hash(page_key(checksum, pgno)) for checksum in checksums]
    assert all(hashes.tolist())


def test_two_million_pages_take_little_memory() -> None:
    hashes = key_hashes(np.full(2_000_000, 1 << 63, np.uint64), np.arange(1, 2_000_001, dtype=np.uint32))
    index = SlotIndex(hashes)
    held = sum(array.nbytes for array in (index._hashes, index._links, index._heads, index._read))
    assert held <= 22 * 2_000_000
    assert list(index.find(page_key(1 << 63, 1_234_567))) == [1_234_566]
