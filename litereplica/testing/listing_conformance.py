"""What the listings of every storage must do; a part of `conformance.StorageConformance`."""

from __future__ import annotations

import pytest

from litereplica.errors import StorageError
from litereplica.storage.base import Storage
from litereplica.testing.back_doors import BackDoor, Subject


async def keys_of(storage: Storage, prefix: str, start_after: str | None = None) -> list[str]:
    """The keys of a listing."""
    return [info.key for info in await storage.list(prefix, start_after=start_after)]


class ListingConformance:
    """The contract of `Storage.list` and `Storage.list_directory`."""

    @pytest.fixture
    def storage(self, subject: Subject) -> Storage:
        return subject.storage

    @pytest.fixture
    def door(self, subject: Subject) -> BackDoor:
        return subject.door

    # list

    async def test_list_of_nothing_is_empty(self, storage: Storage) -> None:
        assert await storage.list("") == []
        assert await storage.list("0000/") == []

    async def test_list_is_sorted_and_tells_sizes(self, storage: Storage, door: BackDoor) -> None:
        for size, key in enumerate(["b", "0001/z", "0000/x", "0000/y", "0000/sub/k", "a"]):
            door.write(key, b"x" * size)
        infos = await storage.list("")
        assert [info.key for info in infos] == ["0000/sub/k", "0000/x", "0000/y", "0001/z", "a", "b"]
        assert [info.size for info in infos] == [4, 2, 3, 1, 5, 0]
        assert all(info.modified_ms > 1_600_000_000_000 for info in infos)

    async def test_list_sorts_by_the_whole_key(self, storage: Storage, door: BackDoor) -> None:
        keys = ["B", "a-b", "a.b", "a/b", "a0"]
        for key in keys:
            door.write(key, b"")
        assert await keys_of(storage, "") == keys

    @pytest.mark.parametrize(
        ("prefix", "expected"),
        [
            ("0000/", ["0000/1", "0000/12", "0000/2"]),
            ("0000/1", ["0000/1", "0000/12"]),
            ("0000", ["0000/1", "0000/12", "0000/2"]),
            ("00", ["0000/1", "0000/12", "0000/2", "0001/1"]),
            ("0002/", []),
            ("0000/1/", []),
            ("x", ["x"]),
        ],
    )
    async def test_list_by_prefix(self, storage: Storage, door: BackDoor, prefix: str, expected: list[str]) -> None:
        for key in ["0000/1", "0000/12", "0000/2", "0001/1", "x"]:
            door.write(key, b"")
        assert await keys_of(storage, prefix) == expected

    @pytest.mark.parametrize(
        ("start_after", "expected"),
        [
            (None, ["0000/1", "0000/2", "0000/3"]),
            ("0000/", ["0000/1", "0000/2", "0000/3"]),
            ("0000/0", ["0000/1", "0000/2", "0000/3"]),
            ("0000/1", ["0000/2", "0000/3"]),
            ("0000/10", ["0000/2", "0000/3"]),
            ("0000/3", []),
            ("0001/1", []),
        ],
    )
    async def test_list_after_a_key(
        self, storage: Storage, door: BackDoor, start_after: str | None, expected: list[str]
    ) -> None:
        for key in ["0000/1", "0000/2", "0000/3", "0001/1"]:
            door.write(key, b"")
        assert await keys_of(storage, "0000/", start_after) == expected

    async def test_list_of_more_than_a_page(self, storage: Storage, door: BackDoor) -> None:
        keys = [f"0000/{number:06}" for number in range(1005)]
        write_many(door, keys)
        assert await keys_of(storage, "0000/") == keys
        assert await keys_of(storage, "0000/", keys[1000]) == keys[1001:]
        await storage.delete(keys)
        assert door.keys() == []

    @pytest.mark.parametrize("prefix", ["/", "../", "a/../", "a//b", "./a"])
    async def test_list_refuses_what_begins_no_key(self, storage: Storage, prefix: str) -> None:
        with pytest.raises(StorageError, match="beginning of a valid key"):
            await storage.list(prefix)

    # list_directory

    async def test_list_directory_shows_one_level(self, storage: Storage, door: BackDoor) -> None:
        keys = ["a.db/0000/1", "a.db/0009/2", "a.db/x", "a.db-b/0000/1", "a.db.c", "a", "é/deep/er", "z z/1"]
        write_many(door, keys)
        top = await storage.list_directory("")
        assert (top.directories, [info.key for info in top.objects]) == (
            ["a.db", "a.db-b", "z z", "é"],
            ["a", "a.db.c"],
        )
        assert top.objects[0].size == (await storage.head("a")).size
        below = await storage.list_directory("a.db/")
        assert (below.directories, [info.key for info in below.objects]) == (["0000", "0009"], ["a.db/x"])
        assert (await storage.list_directory("é/")).directories == ["deep"]

    async def test_list_directory_of_nothing_is_empty(self, storage: Storage, door: BackDoor) -> None:
        write_many(door, ["a/b", "c/d/e"])
        for prefix in ("missing/", "a/b/", "a/bc/", "c/d/e/f/"):
            found = await storage.list_directory(prefix)
            assert (found.directories, found.objects) == ([], [])
        await storage.delete(["c/d/e"])
        assert (await storage.list_directory("c/d/")).objects == []

    async def test_list_directory_of_more_than_a_page(self, storage: Storage, door: BackDoor) -> None:
        names = [f"{number:04}.db" for number in range(1100)]
        write_many(door, [f"many/{name}/k" for name in names])
        found = await storage.list_directory("many/")
        assert (found.directories, found.objects) == (names, [])

    @pytest.mark.parametrize("prefix", ["/", "a", "a//", "../", "a\0/"], ids=repr)
    async def test_list_directory_refuses_what_is_no_directory(self, storage: Storage, prefix: str) -> None:
        with pytest.raises(StorageError, match=r"valid key|slash"):
            await storage.list_directory(prefix)


def write_many(door: BackDoor, keys: list[str]) -> None:
    """Write an empty object for each key."""
    for key in keys:
        door.write(key, b"")
