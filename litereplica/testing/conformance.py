"""What every storage must do: one class that each backend and each wrapper inherits.

A subclass gives the fixture `subject`: a storage, and a back door that reaches the same objects without it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from litereplica.errors import NotFound, PreconditionFailed, StorageError
from litereplica.storage.base import ByteRange, Storage, Suffix
from litereplica.storage.s3_upload import MULTIPART_BYTES
from litereplica.testing.back_doors import BackDoor
from litereplica.testing.listing_conformance import ListingConformance, keys_of

DIGITS = b"0123456789"


async def winners_of(count: int, put: Callable[[bytes], Awaitable[object]]) -> list[int]:
    """The numbers below `count` whose puts, all at once and each with its number as content, were not refused."""
    winners: list[int] = []

    async def contend(number: int) -> None:
        try:
            await put(b"%d" % number)
        except PreconditionFailed:
            return
        winners.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(contend, number)
    return winners


class StorageConformance(ListingConformance):
    """The contract of `litereplica.storage.base.Storage`."""

    # get

    async def test_get_returns_what_lies_in_the_store(self, storage: Storage, door: BackDoor) -> None:
        door.write("0000/a.ltx", DIGITS)
        blob = await storage.get("0000/a.ltx")
        assert (blob.data, blob.size) == (DIGITS, 10)
        assert blob.etag

    @pytest.mark.parametrize(
        ("part", "expected"),
        [
            (ByteRange(0, 10), DIGITS),
            (ByteRange(0, 1), b"0"),
            (ByteRange(3, 7), b"3456"),
            (ByteRange(9, 10), b"9"),
            (ByteRange(8, 1000), b"89"),
            (ByteRange(0, 1000), DIGITS),
            (ByteRange(4, 4), b""),
            (ByteRange(10, 11), b""),
            (ByteRange(1000, 2000), b""),
            (Suffix(1), b"9"),
            (Suffix(10), DIGITS),
            (Suffix(1000), DIGITS),
            (Suffix(0), b""),
        ],
        ids=str,
    )
    async def test_get_of_a_range(
        self, storage: Storage, door: BackDoor, part: ByteRange | Suffix, expected: bytes
    ) -> None:
        door.write("k", DIGITS)
        blob = await storage.get("k", part)
        assert (blob.data, blob.size) == (expected, 10)
        assert blob.etag == (await storage.head("k")).etag

    @pytest.mark.parametrize("part", [None, ByteRange(0, 1), ByteRange(5, 6), Suffix(4)], ids=str)
    async def test_get_of_an_empty_object(self, storage: Storage, part: ByteRange | Suffix | None) -> None:
        await storage.put("empty", b"")
        blob = await storage.get("empty", part)
        assert (blob.data, blob.size) == (b"", 0)

    @pytest.mark.parametrize("part", [None, ByteRange(0, 5), ByteRange(3, 3), Suffix(5)], ids=str)
    async def test_get_of_a_missing_key_is_not_found(self, storage: Storage, part: ByteRange | Suffix | None) -> None:
        with pytest.raises(NotFound) as caught:
            await storage.get("0000/missing", part)
        assert caught.value.key == "0000/missing"
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("part", [ByteRange(-1, 2), ByteRange(3, 2), Suffix(-1)], ids=str)
    async def test_a_negative_range_is_a_mistake(self, storage: Storage, part: ByteRange | Suffix) -> None:
        with pytest.raises(ValueError, match="range"):
            await storage.get("k", part)

    @pytest.mark.parametrize(
        "key", ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\0b", "a\udc80"], ids=repr
    )
    async def test_a_key_that_is_none_is_refused_everywhere(self, storage: Storage, key: str) -> None:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: storage.get(key),
            lambda: storage.head(key),
            lambda: storage.put(key, b""),
            lambda: storage.put_if_absent(key, b""),
            lambda: storage.put_if_match(key, b"", "etag"),
            lambda: storage.delete(["fine", key]),
            lambda: storage.delete_if_match(key, "etag"),
        ]
        for call in calls:
            with pytest.raises(StorageError, match="not a valid key"):
                await call()

    # put

    @pytest.mark.parametrize("size", [0, 1, 5000, 300_000])
    async def test_put_stores_the_bytes(self, storage: Storage, door: BackDoor, size: int) -> None:
        data = os.urandom(size)
        etag = await storage.put("deep/er/k", data)
        assert door.read("deep/er/k") == data
        assert etag == (await storage.head("deep/er/k")).etag == (await storage.get("deep/er/k")).etag

    async def test_put_replaces(self, storage: Storage, door: BackDoor) -> None:
        door.write("k", b"the old one is longer")
        old = (await storage.head("k")).etag
        new = await storage.put("k", b"new")
        assert door.read("k") == b"new"
        assert new != old

    async def test_put_of_a_file(self, storage: Storage, door: BackDoor, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(DIGITS * 1000)
        await storage.put("k", source)
        assert door.read("k") == DIGITS * 1000
        assert source.exists()

    async def test_put_leaves_no_other_object(self, storage: Storage, door: BackDoor) -> None:
        await storage.put("0000/k", b"x")
        await storage.put_if_absent("0000/l", b"x")
        with pytest.raises(PreconditionFailed):
            await storage.put_if_absent("0000/l", b"y")
        assert await keys_of(storage, "") == door.keys() == ["0000/k", "0000/l"]

    @pytest.mark.parametrize("modified_ms", [1_700_000_000_123, 1_700_000_000_000, 1_700_000_000_100])
    async def test_the_time_given_to_put_is_told_by_head(self, storage: Storage, modified_ms: int) -> None:
        await storage.put("k", b"x", modified_ms=modified_ms)
        assert (await storage.head("k")).modified_ms == modified_ms

    async def test_keys_may_hold_any_text(self, storage: Storage, door: BackDoor) -> None:
        keys = ["+%20 &?#=", "a b", "é/ü", "日本"]
        for key in keys:
            await storage.put(key, key.encode())
        assert await keys_of(storage, "") == keys == door.keys()
        assert (await storage.get("é/ü")).data == "é/ü".encode()
        await storage.delete(keys)
        assert door.keys() == []

    # put_if_absent

    async def test_put_if_absent_creates_once(self, storage: Storage, door: BackDoor) -> None:
        etag = await storage.put_if_absent("k", b"first", modified_ms=5000)
        with pytest.raises(PreconditionFailed) as caught:
            await storage.put_if_absent("k", b"second")
        assert caught.value.key == "k"
        assert door.read("k") == b"first"
        info = await storage.head("k")
        assert (info.etag, info.modified_ms) == (etag, 5000)

    async def test_put_if_absent_after_a_delete(self, storage: Storage, door: BackDoor) -> None:
        await storage.put_if_absent("k", b"first")
        await storage.delete(["k"])
        await storage.put_if_absent("k", b"second")
        assert door.read("k") == b"second"

    async def test_of_64_concurrent_put_if_absent_one_wins(self, storage: Storage, door: BackDoor) -> None:
        winners = await winners_of(64, lambda body: storage.put_if_absent("0000/contended", body))
        assert len(winners) == 1
        assert door.read("0000/contended") == b"%d" % winners[0]

    # put_if_match

    async def test_put_if_match_replaces_what_was_seen(self, storage: Storage, door: BackDoor) -> None:
        etag = await storage.put("k", b"one", modified_ms=1000)
        etag = await storage.put_if_match("k", b"two", etag, modified_ms=1000)
        assert door.read("k") == b"two"
        assert (await storage.head("k")).etag == etag

    async def test_put_if_match_refuses_what_has_changed(self, storage: Storage, door: BackDoor) -> None:
        etag = await storage.put("k", b"one", modified_ms=1000)
        await storage.put("k", b"two", modified_ms=1000)  # same size, same time
        with pytest.raises(PreconditionFailed):
            await storage.put_if_match("k", b"three", etag, modified_ms=1000)
        assert door.read("k") == b"two"

    async def test_put_if_match_refuses_what_is_missing(self, storage: Storage, door: BackDoor) -> None:
        etag = await storage.put("elsewhere", b"x")
        with pytest.raises(PreconditionFailed):
            await storage.put_if_match("missing/k", b"x", etag)
        assert door.keys() == ["elsewhere"]

    async def test_of_8_concurrent_put_if_match_one_wins(self, storage: Storage, door: BackDoor) -> None:
        etag = await storage.put("lease", b"free")
        winners = await winners_of(8, lambda body: storage.put_if_match("lease", body, etag))
        assert len(winners) == 1
        assert door.read("lease") == b"%d" % winners[0]

    # Files so large that a backend may send them in parts

    async def test_a_large_file_with_conditions(self, storage: Storage, door: BackDoor, tmp_path: Path) -> None:
        source = tmp_path / "large"
        data = os.urandom(1 << 20) * (MULTIPART_BYTES >> 20) + b"tail"
        source.write_bytes(data)
        other = tmp_path / "other"
        other.write_bytes(data[::-1])
        etag = await storage.put_if_absent("large", source, modified_ms=77_000)
        with pytest.raises(PreconditionFailed):
            await storage.put_if_absent("large", other)
        with pytest.raises(PreconditionFailed):
            await storage.put_if_match("large", other, '"0123456789abcdef"')
        info = await storage.head("large")
        assert (info.size, info.modified_ms, info.etag) == (len(data), 77_000, etag)
        assert door.read("large") == data
        assert await storage.put_if_match("large", other, etag) != etag
        assert door.read("large") == data[::-1]

    # head

    async def test_head_tells_size_and_time(self, storage: Storage, door: BackDoor) -> None:
        door.write("a/k", DIGITS)
        info = await storage.head("a/k")
        assert (info.key, info.size) == ("a/k", 10)
        assert info.modified_ms > 1_600_000_000_000

    async def test_head_of_a_missing_key_is_not_found(self, storage: Storage) -> None:
        with pytest.raises(NotFound):
            await storage.head("missing")

    # delete

    async def test_delete_removes_only_what_is_named(self, storage: Storage, door: BackDoor) -> None:
        for key in ["a/1", "a/2", "b/1"]:
            door.write(key, b"x")
        await storage.delete(["a/1", "b/1", "missing", "also/missing"])
        assert door.keys() == ["a/2"]
        await storage.delete(["a/1"])
        await storage.delete([])
        assert door.keys() == ["a/2"]

    async def test_delete_if_match_deletes_what_was_seen(self, storage: Storage, door: BackDoor) -> None:
        etag = await storage.put("k", b"x")
        await storage.delete_if_match("k", etag)
        assert door.keys() == []

    async def test_delete_if_match_refuses_what_has_changed(self, storage: Storage, door: BackDoor) -> None:
        etag = await storage.put("k", b"x")
        await storage.put("k", b"y")
        with pytest.raises(PreconditionFailed):
            await storage.delete_if_match("k", etag)
        assert door.read("k") == b"y"

    async def test_delete_if_match_refuses_what_is_missing(self, storage: Storage) -> None:
        etag = await storage.put("k", b"x")
        await storage.delete(["k"])
        for key in ["k", "never/was"]:
            with pytest.raises(PreconditionFailed):
                await storage.delete_if_match(key, etag)

    # cancellation, and many at once

    async def test_a_cancelled_operation_ends_and_leaves_the_storage_usable(
        self, storage: Storage, door: BackDoor
    ) -> None:
        door.write("k", DIGITS)
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: storage.get("k"),
            lambda: storage.head("k"),
            lambda: storage.list(""),
            lambda: storage.put("other", b"x"),
            lambda: storage.delete(["other"]),
        ]
        for call in calls:
            with trio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught
        assert (await storage.get("k")).data == DIGITS

    async def test_many_reads_at_once(self, storage: Storage, door: BackDoor) -> None:
        door.write("k", DIGITS)
        results: list[bytes] = []

        async def read(number: int) -> None:
            results.append((await storage.get("k", ByteRange(number % 10, number % 10 + 1))).data)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(read, number)
        assert sorted(results) == sorted(DIGITS[n % 10 : n % 10 + 1] for n in range(100))

    async def test_the_url_names_the_place(self, storage: Storage) -> None:
        assert "://" in storage.url
