"""What is below a prefix: told by names alone, with few requests."""

from __future__ import annotations

import pytest

from litereplica.format.names import Layout, file_key
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.prefix import Kind, Prefix
from litereplica.testing.memory import MemoryStorage


class Scene:
    """A store with databases, and their prefix."""

    def __init__(self, layout: Layout) -> None:
        self.storage = MemoryStorage()
        self.layout = layout
        self.prefix = Prefix(LTXStore(self.storage, layout), url_of=lambda path: f"memory://test/{path}")

    async def publish(self, path: str, *levels: int) -> None:
        for level in levels:
            await self.storage.put(f"{path}/{file_key(self.layout, level, 1, 1)}".lstrip("/"), b"x")

    def requests(self) -> int:
        return self.prefix.statistics().requests


@pytest.fixture(params=list(Layout), ids=str)
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(request.param)


async def test_databases_and_directories_are_told_apart(scene: Scene) -> None:
    await scene.publish("a.db", 0, 9)
    await scene.publish("eu/west/b.db", 0)
    await scene.publish("numbers/0000", 9)  # tenants that are called as levels are
    await scene.publish("numbers/0009", 0)
    await scene.publish("odd/ltx", 0)
    await scene.publish("odd/ltx/0", 0)
    await scene.storage.put("lock.json", b"{}")
    await scene.storage.put("notes/readme.ltx", b"no LTX file")
    await scene.storage.put("cut/0000/0000000000000001-0000000000000001.ltx.tmp", b"")
    await scene.storage.put("cut/ltx/0/x", b"")
    expected = {
        "a.db": Kind.DATABASE,
        "eu": Kind.DIRECTORY,
        "eu/west": Kind.DIRECTORY,
        "eu/west/b.db": Kind.DATABASE,
        "numbers": Kind.DIRECTORY,
        "numbers/0000": Kind.DATABASE,
        "numbers/0009": Kind.DATABASE,
        "odd": Kind.DIRECTORY,
        "odd/ltx": Kind.DATABASE,
        "notes": Kind.DIRECTORY,
        "cut": Kind.DIRECTORY,
        "lock.json": None,
        "a": None,
        "a.db/missing": None,
    }
    assert {path: await scene.prefix.find(path) for path in expected} == expected
    assert await scene.prefix.find("") is Kind.DIRECTORY
    assert await scene.prefix.names("") == ["a.db", "cut", "eu", "notes", "numbers", "odd"]
    assert await scene.prefix.names("eu") == ["west"]


async def test_a_root_with_files_is_a_database(scene: Scene) -> None:
    assert await scene.prefix.find("") is None
    await scene.publish("", 9)
    assert await scene.prefix.find("") is Kind.DATABASE


async def test_a_name_costs_few_small_requests(scene: Scene) -> None:
    await scene.publish("eu/a.db", 0, 1, 9)
    costs = {}
    for path in ("missing", "eu", "eu/a.db"):
        before = scene.requests()
        await scene.prefix.find(path)
        costs[path] = scene.requests() - before
    assert costs == {"missing": 2, "eu": 2, "eu/a.db": 2}
