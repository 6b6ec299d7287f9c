"""Two writers and every order of their requests.

A writer is a coroutine that stops before each request takes effect. An exploration runs all schedules: at each point
either writer goes on, or time passes, 31 s at once (longer than a lease) or 15 s (a renewal is due), a few times.
A writer that is not chosen for long is one that was suspended at its worst moment. Everything is deterministic, and
without an event loop: a schedule takes some 0.3 ms.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from litereplica.errors import ConflictError, LeaseHeld, PreconditionFailed, StorageError, TransientStorageError
from litereplica.ltxstore.lease import Identity, Moment, Publication, ReplicaLease
from litereplica.ltxstore.lease_record import LOCK_KEY
from litereplica.storage.base import Body, ObjectInfo, Storage
from litereplica.storage.wrappers import Call, WrapperStorage
from litereplica.testing.faults import Fault, FaultAt, FaultPlan, FaultStorage, When
from litereplica.testing.memory import MemoryStorage

T = TypeVar("T")

LONG_MS = 31_000
SHORT_MS = 15_000
REQUESTS_OF_A_RUN = 5
"""Of a writer that puts one file, undisturbed: read and write the lease, list, put, delete the lease."""
ATTEMPTS = 3
"""Of a writer that is told to wait, and of one whose request had no answer."""


class Killed(StorageError):
    """The process ends at this request."""


@types.coroutine
def stop_here() -> Generator[None, None, None]:
    """Until the schedule comes back to this writer."""
    yield


async def answer(request: Callable[[], Awaitable[T]]) -> T:
    """Of a request that is made once more when there was none."""
    try:
        return await request()
    except TransientStorageError:
        return await request()


class SteppedStorage(MemoryStorage):
    """Stops before each effect. `effects`: what was ever put, by key. `honest`: it honours conditions."""

    def __init__(self, *, honest: bool) -> None:
        super().__init__(now_ms=lambda: 0)
        self.effects: dict[str, list[bytes]] = {}
        self._honest = honest

    async def put_if_absent(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        if not self._honest:
            await self._arrive(key)
            return self._store(key, body, modified_ms)
        return await super().put_if_absent(key, body, modified_ms=modified_ms)

    async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
        await stop_here()
        return [ObjectInfo(key, 0, 0) for key in sorted(self.objects) if key.startswith(prefix)]

    async def _arrive(self, key: str) -> None:
        await stop_here()

    def _require_etag(self, key: str, etag: str) -> None:
        if self._honest:
            super()._require_etag(key, etag)
        elif key not in self.objects:
            raise PreconditionFailed(f"{key} does not exist", key=key)

    def _store(self, key: str, body: Body, modified_ms: int | None) -> str:
        assert isinstance(body, bytes)
        self.effects.setdefault(key, []).append(body)
        return super()._store(key, body, modified_ms)


class Observed(WrapperStorage):
    """Writes down every answer."""

    def __init__(self, inner: Storage, seen: list[object]) -> None:
        super().__init__(inner)
        self._seen = seen

    async def _around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        try:
            answer = await perform()
        except StorageError as exc:
            self._seen.append(type(exc))
            raise
        self._seen.append(str(answer))
        return answer


@dataclass
class Writer:
    """What a process does: takes the lease, reads its positions, publishes `puts` files to each of its databases in
    turn, gives the lease back.

    Killed, it is started again: `runs` counts.
    """

    name: str
    storage: Storage
    now: Callable[[], Moment]
    puts: int
    with_lease: bool = True
    databases: int = 1
    acknowledged: dict[str, bytes] = field(default_factory=dict)
    outcome: str = ""
    runs: int = 0
    lease: ReplicaLease | None = None

    async def __call__(self) -> None:
        while not self.outcome:
            self.runs += 1
            identity = Identity(f"{self.name}:{self.runs}", self.name)
            self.lease = ReplicaLease(self.storage, identity, now=self.now)
            try:
                self.outcome = await self._run(self.lease)
            except Killed:
                self.lease = None
            except ConflictError:
                self.outcome = "stopped"

    async def _run(self, lease: ReplicaLease) -> str:
        if self.with_lease and not await self._take(lease):
            return "waiting"
        publications = [Publication(lease) for _ in range(self.databases)]
        positions = []
        for database, publication in enumerate(publications):
            if self.with_lease:
                await answer(publication.resume)
            positions.append(await self._newest(database))
        for number in range(self.puts):
            for database, publication in enumerate(publications):
                positions[database] += 1
                body = f"{self.name}{self.runs}.{number}".encode()
                await self._publish(publication, database, positions[database], body)
        if self.with_lease:
            await answer(lease.release)
        return "done"

    async def _take(self, lease: ReplicaLease) -> bool:
        for _ in range(ATTEMPTS):
            try:
                await lease.ensure()
                return True
            except (LeaseHeld, TransientStorageError):
                continue
        return False

    async def _newest(self, database: int) -> int:
        files = await answer(lambda: self.storage.list(f"{database}/"))
        return max((int(info.key.partition("/")[2]) for info in files), default=0)

    async def _publish(self, publication: Publication, database: int, txid: int, body: bytes) -> None:
        key = f"{database}/{txid:04d}"

        async def put() -> None:
            await self.storage.put_if_absent(key, body)

        async def verify() -> None:
            if await self._newest(database) > txid:
                raise ConflictError("another writer has published")

        for _ in range(ATTEMPTS):
            try:
                await (publication.put(put, verify=verify) if self.with_lease else put())
            except TransientStorageError:
                continue
            except PreconditionFailed as exc:
                if (await answer(lambda: self.storage.get(key))).data != body:
                    raise ConflictError("another writer has published") from exc
            self.acknowledged[key] = body
            return


@dataclass
class World:
    """One store, one clock, two writers, and what each of them has seen of both: all that its state depends on."""

    storage: SteppedStorage
    most_holders: int
    writers: list[Writer] = field(default_factory=list)
    seen: list[list[object]] = field(default_factory=lambda: [[], []])
    ms: int = 0
    checking: bool = False

    def state(self) -> Hashable:
        """Two schedules that lead to the same state have the same futures."""
        objects = frozenset((key, stored.data) for key, stored in self.storage.objects.items())
        return objects, self.ms, tuple(map(tuple, self.seen))

    def check(self) -> None:
        """At any time."""
        self.checking = True
        for key, bodies in self.storage.effects.items():
            assert key == LOCK_KEY or len(bodies) == 1, f"{key} was put {len(bodies)} times"
        holders = [lease for writer in self.writers if writer.lease and (lease := writer.lease.held())]
        generations = [lease.generation for lease in holders]
        assert len(set(generations)) == len(generations), f"two holders of one generation: {holders}"
        assert len(holders) <= self.most_holders, f"two holders: {holders}"
        for writer in self.writers:
            for key, body in writer.acknowledged.items():
                assert self.storage.objects[key].data == body, f"{key} was acknowledged to {writer.name} and is lost"
        self.checking = False


@dataclass(frozen=True)
class Setting:
    """What is the same in all schedules of one exploration."""

    honest: bool = True
    with_lease: bool = True
    long_pauses: int = 0
    short_pauses: int = 0
    puts: int = 2  # by the first writer
    fault: FaultAt | None = None  # of its requests
    ahead_ms: int = 0  # of the second writer's clock
    databases: int = 1  # of each writer, under one lease

    def world(self) -> World:
        world = World(SteppedStorage(honest=self.honest), 2 if self.ahead_ms else 1)

        def add(name: str, puts: int, ahead_ms: int, plan: FaultPlan) -> None:
            seen = world.seen[len(world.writers)]

            def now() -> Moment:
                if not world.checking:
                    seen.append(world.ms)
                return Moment(world.ms + ahead_ms, world.ms / 1000)

            storage = Observed(FaultStorage(world.storage, plan), seen)
            world.writers.append(Writer(name, storage, now, puts, self.with_lease, self.databases))

        add("a", self.puts, 0, self.fault or (lambda request: None))
        add("b", 1, self.ahead_ms, lambda request: None)
        return world


def run(setting: Setting, schedule: Sequence[int], known: set[Hashable]) -> tuple[World, list[int]]:
    """One schedule, its later choices all 0. Returns also how many choices there were at each point.

    Ends where it comes to a state that is `known`.
    """
    world = setting.world()
    running: list[Coroutine[Any, Any, None]] = [writer() for writer in world.writers]
    pauses = {LONG_MS: setting.long_pauses, SHORT_MS: setting.short_pauses}
    widths: list[int] = []

    def go_on(coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            coroutine.send(None)
        except StopIteration:
            running.remove(coroutine)

    def wait(ms: int) -> None:
        world.ms += ms
        pauses[ms] -= 1

    try:
        for coroutine in list(running):
            go_on(coroutine)  # up to its first request
        while running:
            choices: list[Callable[[], None]] = [lambda each=each: go_on(each) for each in running]  # type: ignore[misc]
            choices += [lambda ms=ms: wait(ms) for ms, left in pauses.items() if left]  # type: ignore[misc]
            choice = 0
            if len(widths) < len(schedule):
                choice = schedule[len(widths)]
            else:
                state = (world.state(), *pauses.values())
                if state in known:
                    break
                known.add(state)
            widths.append(len(choices))
            choices[choice]()
            if len(widths) >= len(schedule):  # what comes before was checked when it was new
                world.check()
    finally:
        for coroutine in running:
            coroutine.close()
    return world, widths


def schedules(setting: Setting) -> Iterator[World]:
    """Every schedule, those with a common future once; unfinished then."""
    schedule: list[int] = []
    known: set[Hashable] = set()
    while True:
        world, widths = run(setting, schedule, known)
        yield world
        schedule += [0] * (len(widths) - len(schedule))
        while schedule and schedule[-1] == widths[len(schedule) - 1] - 1:
            schedule.pop()
        if not schedule:
            return
        schedule[-1] += 1


def outcomes(setting: Setting) -> dict[tuple[str, str], int]:
    """How often the two writers ended in which way. Every state on the way there was checked."""
    found: dict[tuple[str, str], int] = {}
    for world in schedules(setting):
        first, second = (writer.outcome for writer in world.writers)
        if first and second:
            found[first, second] = found.get((first, second), 0) + 1
    return found


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("long_pauses", "short_pauses", "fewest"),
    [(0, 0, 10), (1, 0, 300), (0, 1, 50), pytest.param(2, 0, 3000, marks=slow), pytest.param(1, 1, 3000, marks=slow)],
)
def test_two_writers_put_each_file_once_and_lose_none(long_pauses: int, short_pauses: int, fewest: int) -> None:
    found = outcomes(Setting(long_pauses=long_pauses, short_pauses=short_pauses))
    assert sum(found.values()) > fewest
    assert found["done", "done"], "one after the other"
    assert found["done", "waiting"], "one is kept away"
    assert bool(found.get(("stopped", "done"))) == bool(long_pauses), "one takes over from one that was suspended"


@pytest.mark.parametrize(("long_pauses", "short_pauses", "fewest"), [(0, 0, 10), (1, 0, 300), (0, 1, 50)])
def test_two_writers_of_two_databases_under_one_lease_put_each_file_once(
    long_pauses: int, short_pauses: int, fewest: int
) -> None:
    found = outcomes(Setting(long_pauses=long_pauses, short_pauses=short_pauses, puts=1, databases=2))
    assert sum(found.values()) > fewest
    assert found["done", "done"], "one after the other"
    assert found["done", "waiting"], "one is kept away"
    assert bool(found.get(("stopped", "done"))) == bool(long_pauses), "one takes over from one that was suspended"


@pytest.mark.parametrize("long_pauses", [0, pytest.param(1, marks=slow)])
@pytest.mark.parametrize("error", [TransientStorageError, Killed])
@pytest.mark.parametrize("when", When)
def test_writer_without_an_answer_or_killed_goes_on_with_its_own_lease(
    when: When, error: type[StorageError], long_pauses: int
) -> None:
    for n in range(1, REQUESTS_OF_A_RUN + 1):
        found = outcomes(Setting(puts=1, long_pauses=long_pauses, fault=FaultAt(n, fault=Fault(when, error))))
        assert found["done", "waiting"], f"request {n}: the second writer got between"
        if not long_pauses:
            assert not found.get(("stopped", "done")), f"request {n}: the lease was lost without a pause"


@pytest.mark.parametrize("ahead_ms", [10_000, 40_000])
@pytest.mark.parametrize("long_pauses", [0, 1])
def test_clock_that_is_ahead_makes_no_two_holders_of_one_generation(ahead_ms: int, long_pauses: int) -> None:
    found = outcomes(Setting(ahead_ms=ahead_ms, long_pauses=long_pauses))
    assert bool(found.get(("stopped", "done"))) == (ahead_ms > LONG_MS or long_pauses > 0)


def test_without_a_lease_two_writers_put_each_file_once_and_one_of_them_stops() -> None:
    found = outcomes(Setting(with_lease=False))
    assert set(found) == {("done", "done"), ("done", "stopped"), ("stopped", "done")}


@pytest.mark.parametrize("with_lease", [True, False])
def test_store_that_ignores_conditions_loses_what_was_acknowledged(with_lease: bool) -> None:
    """Which is why the probe refuses it: the explorations above would notice."""
    with pytest.raises(AssertionError, match=r"was put 2 times|two holders|is lost"):
        outcomes(Setting(honest=False, with_lease=with_lease, long_pauses=1))
