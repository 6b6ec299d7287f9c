"""The lease: its format, its decisions, and what is asked of the store."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from litereplica.errors import (
    ConditionsIgnored,
    ConflictError,
    DamagedFile,
    LeaseHeld,
    LeaseLost,
    PreconditionFailed,
    TransientStorageError,
)
from litereplica.ltxstore.conditions import PROBE_PREFIX, require_conditions
from litereplica.ltxstore.lease import (
    LONGEST_TERM_S,
    RENEW_BEFORE_MS,
    TERM_MS,
    Found,
    Held,
    Identity,
    Moment,
    Publication,
    Refuse,
    ReplicaLease,
    Write,
    acquire,
    renew,
)
from litereplica.ltxstore.lease_record import LOCK_KEY, MAX_GENERATION, MAX_LEASE_BYTES, Lease
from litereplica.storage.base import Blob, Body, Range
from litereplica.storage.wrappers import MeteredStorage, Operation, WrapperStorage
from litereplica.testing.faults import Fault, FaultAt, FaultStorage, When
from litereplica.testing.memory import MemoryStorage, StoredObject
from tests.helpers.careless import Careless

NOW_MS = 1_767_323_045_678  # 2026-01-02T03:04:05.678Z
ME = Identity("here:1", "a" * 32)
OTHER = Identity("there:1", "b" * 32)


class Clock:
    """Both clocks of a machine; a test may set either."""

    def __init__(self) -> None:
        self.wall_ms = NOW_MS
        self.steady_s = 1000.0

    def __call__(self) -> Moment:
        return Moment(self.wall_ms, self.steady_s)

    def advance(self, seconds: float) -> None:
        self.wall_ms += round(seconds * 1000)
        self.steady_s += seconds


async def nothing() -> None:
    """Publishes nothing, and finds nothing wrong."""


def stored(storage: MemoryStorage) -> Lease:
    return Lease.decode(storage.objects[LOCK_KEY].data)


# --- format

leases = st.builds(
    Lease,
    st.integers(0, MAX_GENERATION - 1),
    st.integers(0, 253_370_764_800_000),
    st.text(st.characters(exclude_categories=["C", "Z"]), max_size=300),
    st.text("0123456789abcdef", max_size=32),
)


@given(leases)
def test_lease_survives_its_encoding(lease: Lease) -> None:
    data = lease.encode()
    assert Lease.decode(data) == lease
    assert len(data) <= MAX_LEASE_BYTES


def test_lease_has_the_shape_that_litestream_reads() -> None:
    assert json.loads(Lease(3, NOW_MS, "here:1", "ab").encode()) == {
        "generation": 3,
        "expires_at": "2026-01-02T03:04:05.678Z",
        "owner": "here:1",
        "id": "ab",
    }


@pytest.mark.parametrize(
    ("expires_at", "expires_ms"),
    [
        ("2026-01-02T03:04:05.678901234Z", NOW_MS),
        ("2026-01-02T05:04:05.678+02:00", NOW_MS),
        ("2026-01-02T03:04:05Z", NOW_MS - 678),
        ("0001-01-01T00:00:00Z", 0),
        ("9999-12-31T23:59:59-23:59", 253_370_764_800_000),
    ],
)
def test_lease_of_litestream_is_understood(expires_at: str, expires_ms: int) -> None:
    """As Go's encoding/json writes it: up to nanoseconds, the zone of the machine, no owner when it is empty."""
    data = json.dumps({"generation": 7, "expires_at": expires_at}).encode()
    assert Lease.decode(data) == Lease(7, expires_ms, "", "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * MAX_LEASE_BYTES,
        b'{"generation": 1}',
        b'{"generation": true, "expires_at": "2026-01-02T03:04:05Z"}',
        b'{"generation": 1.0, "expires_at": "2026-01-02T03:04:05Z"}',
        b'{"generation": -1, "expires_at": "2026-01-02T03:04:05Z"}',
        b'{"generation": 4611686018427387904, "expires_at": "2026-01-02T03:04:05Z"}',
        b'{"generation": 1, "expires_at": "2026-01-02T03:04:05"}',
        b'{"generation": 1, "expires_at": 5}',
        b'{"generation": 1, "expires_at": "soon"}',
        b'{"generation": 1, "expires_at": "2026-01-02T03:04:05Z", "owner": 1}',
        b'{"generation": 1, "expires_at": "2026-01-02T03:04:05Z", "id": []}',
        Lease(1, NOW_MS, "here:1").encode() + b" " * MAX_LEASE_BYTES,
    ],
)
@pytest.mark.logs("lock.json of .* may be abandoned")
async def test_what_stays_no_lease_is_replaced_when_nobody_has_written_it_for_a_term(
    data: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    storage = MemoryStorage()
    storage.objects[LOCK_KEY] = StoredObject(data, 0)
    before_s = trio.current_time()
    await ReplicaLease(storage, ME, now=Clock()).ensure()
    assert trio.current_time() - before_s >= LONGEST_TERM_S
    assert stored(storage) == Lease(1, NOW_MS + TERM_MS, ME.owner, ME.id)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes().map(lambda t: f"{t:%FT%TZ}"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
lease_like = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("generation", "expires_at", "owner", "id", "more"), json_values)
)


@given(st.binary(max_size=200) | lease_like.map(lambda fields: json.dumps(fields).encode()))
def test_whatever_is_read_is_a_lease_that_can_be_shown_or_one_error(data: bytes) -> None:
    try:
        lease = Lease.decode(data)
    except DamagedFile:
        return
    assert (lease.owner + lease.id).isprintable()
    assert Lease.decode(lease.encode()) == lease


def test_owner_cannot_write_lines_of_its_own_into_a_log() -> None:
    data = json.dumps({"generation": 1, "expires_at": "2026-01-02T03:04:05Z", "owner": "a\nERROR \ud800" + "b" * 999})
    owner = Lease.decode(data.encode()).owner
    assert owner.startswith("a?ERROR ?bbb")
    assert len(owner) == 300


# --- decisions


@given(leases, st.integers(0, MAX_GENERATION), st.integers(0, 2 * NOW_MS), st.booleans())
def test_lease_is_refused_only_while_another_holds_it_and_generations_only_grow(
    lease: Lease, generation: int, now_ms: int, ours: bool
) -> None:
    me = Identity("here:1", lease.id) if ours and lease.id else ME
    step = acquire(Found(lease, "etag"), me, generation=generation, now=Moment(now_ms, 0.0))
    if me is ME and now_ms < lease.expires_ms:
        assert step == Refuse(lease)
    else:
        following = max(lease.generation, generation) + 1
        assert step == Write(Lease(following, now_ms + TERM_MS, me.owner, me.id), "etag")


def test_lease_that_is_not_there_is_created_only_if_it_is_still_not_there() -> None:
    step = acquire(None, ME, generation=4, now=Moment(NOW_MS, 0.0))
    assert step == Write(Lease(5, NOW_MS + TERM_MS, ME.owner, ME.id), None)


@given(st.integers(-TERM_MS, 2 * TERM_MS), st.integers(-TERM_MS, 2 * TERM_MS))
def test_lease_is_renewed_by_whichever_clock_is_nearer_its_end(wall_ms: int, steady_ms: int) -> None:
    held = Held(Lease(3, NOW_MS + TERM_MS, ME.owner, ME.id), "etag", 1000 + TERM_MS / 1000)
    step = renew(held, ME, now=Moment(NOW_MS + wall_ms, 1000 + steady_ms / 1000))
    passed_ms = max(wall_ms, steady_ms)
    if passed_ms < TERM_MS - RENEW_BEFORE_MS:
        assert step is None
    else:
        generation = 3 if passed_ms < TERM_MS else 4
        assert step == Write(Lease(generation, NOW_MS + wall_ms + TERM_MS, ME.owner, ME.id), "etag")


# --- over a store


class Stage:
    """A store that counts and fails as told, and leases of two writers of one clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.memory = MemoryStorage()
        self.faults = FaultStorage(self.memory, lambda request: None)
        self.storage = MeteredStorage(self.faults)
        self.lease = self.lease_of(ME)
        self.publication = Publication(self.lease)

    def lease_of(self, identity: Identity) -> ReplicaLease:
        return ReplicaLease(self.storage, identity, now=self.clock)

    @property
    def requests(self) -> int:
        return self.storage.statistics().requests

    def lose_answer(self, operation: Operation) -> None:
        """That of the next request of this kind, which takes effect."""
        done = self.storage.statistics().by_operation[operation].requests
        self.faults.plan = FaultAt(done + 1, operation, Fault(When.AFTER_EFFECT))


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def test_lease_is_taken_with_two_requests_and_used_without_any(stage: Stage) -> None:
    await stage.lease.ensure()
    assert stage.requests == 2
    assert stored(stage.memory) == Lease(1, NOW_MS + TERM_MS, ME.owner, ME.id) == stage.lease.held()
    stage.clock.advance(9)
    await stage.lease.ensure()
    assert stage.requests == 2


async def test_lease_is_renewed_with_one_request_in_the_same_generation(stage: Stage) -> None:
    await stage.lease.ensure()
    stage.clock.advance(11)
    assert stage.lease.renewal_due_s() == 0
    await stage.lease.ensure()
    assert stage.requests == 3
    assert stored(stage.memory) == Lease(1, NOW_MS + 11_000 + TERM_MS, ME.owner, ME.id)
    assert stage.lease.renewal_due_s() == pytest.approx(10)


async def test_lapsed_lease_that_nobody_took_is_taken_again_with_one_request(stage: Stage) -> None:
    await stage.lease.ensure()
    await stage.publication.resume()
    stage.clock.advance(3600)
    assert stage.lease.held() is None
    await stage.lease.ensure()
    assert stage.requests == 3
    assert stored(stage.memory).generation == 2
    assert not stage.publication.interrupted


async def test_lease_of_another_is_refused_with_its_holder_and_its_time(stage: Stage) -> None:
    await stage.lease_of(OTHER).ensure()
    stage.clock.advance(7)
    with pytest.raises(
        LeaseHeld, match=r"leased to there:1 \(generation 1\) until 2026-01-02T03:04:35.678Z, 23 s"
    ) as e:
        await stage.lease.ensure()
    assert (e.value.owner, e.value.generation, e.value.left_s) == ("there:1", 1, 23.0)
    await stage.lease.release()
    assert stored(stage.memory).owner == "there:1"


async def test_expired_lease_of_another_is_taken_as_the_next_generation(stage: Stage) -> None:
    await stage.lease_of(OTHER).ensure()
    stage.clock.advance(30)
    await stage.lease.ensure()
    assert stored(stage.memory) == Lease(2, NOW_MS + 60_000, ME.owner, ME.id)


async def test_writer_that_lost_its_lease_is_told_who_has_it(stage: Stage) -> None:
    await stage.lease.ensure()
    stage.clock.advance(31)
    await stage.lease_of(OTHER).ensure()
    with pytest.raises(LeaseLost, match=r"was lost: it is held by there:1 \(generation 2\)"):
        await stage.lease.ensure()
    assert stage.lease.held() is None


async def test_lease_counts_as_lost_as_soon_as_a_renewal_is_refused(stage: Stage) -> None:
    """Though its time is not over, and although nobody can be asked who has it."""
    await stage.lease.ensure()
    stage.clock.advance(15)
    stage.memory.objects[LOCK_KEY] = StoredObject(Lease(2, NOW_MS + 60_000, OTHER.owner, OTHER.id).encode(), 0)
    stage.faults.plan = FaultAt(2, Operation.GET)
    with pytest.raises(TransientStorageError):
        await stage.lease.ensure()
    assert stage.lease.held() is None


async def test_lease_that_lapsed_during_the_check_is_taken_again_before_the_put(stage: Stage) -> None:
    async def slow() -> None:
        stage.clock.advance(31)

    async def put() -> None:
        assert stage.lease.held() is not None

    await stage.lease.ensure()
    assert stage.publication.interrupted
    await stage.publication.put(put, verify=slow)
    assert stored(stage.memory).generation == 2


async def test_own_lease_is_taken_at_once_after_a_crash(stage: Stage) -> None:
    await stage.lease_of(Identity("here:4711", ME.id)).ensure()
    await stage.lease.ensure()
    assert stored(stage.memory) == Lease(2, NOW_MS + TERM_MS, ME.owner, ME.id)


async def test_same_host_and_process_number_do_not_make_a_lease_ones_own(stage: Stage) -> None:
    await stage.lease_of(Identity(ME.owner, OTHER.id)).ensure()
    with pytest.raises(LeaseHeld):
        await stage.lease.ensure()


@pytest.mark.parametrize("wall_step_s", [-3600, 0, 3600])
async def test_stepping_wall_clock_does_not_prolong_a_lease(stage: Stage, wall_step_s: int) -> None:
    await stage.lease.ensure()
    stage.clock.wall_ms += wall_step_s * 1000
    stage.clock.advance(31)
    assert stage.lease.held() is None


async def test_sleeping_machine_does_not_prolong_a_lease(stage: Stage) -> None:
    await stage.lease.ensure()
    stage.clock.wall_ms += 31_000
    assert stage.lease.held() is None


@pytest.mark.parametrize("operation", [Operation.PUT_IF_ABSENT, Operation.PUT_IF_MATCH])
async def test_own_write_whose_answer_was_lost_is_recognised(stage: Stage, operation: Operation) -> None:
    if operation is Operation.PUT_IF_MATCH:
        await stage.lease.ensure()
        stage.clock.advance(15)
    stage.lose_answer(operation)
    with pytest.raises(TransientStorageError):
        await stage.lease.ensure()
    await stage.lease.ensure()
    assert stage.lease.held() == stored(stage.memory)
    assert stored(stage.memory).id == ME.id


async def test_released_lease_is_gone_and_the_next_writer_need_not_wait(stage: Stage) -> None:
    await stage.lease.ensure()
    await stage.lease.release()
    assert not stage.memory.objects
    await stage.lease_of(OTHER).ensure()
    assert stored(stage.memory).owner == OTHER.owner


async def test_release_after_a_lost_answer_finds_its_own_lease(stage: Stage) -> None:
    await stage.lease.ensure()
    stage.clock.advance(15)
    stage.lose_answer(Operation.PUT_IF_MATCH)
    with pytest.raises(TransientStorageError):
        await stage.lease.ensure()
    await stage.lease.release()
    assert not stage.memory.objects


async def test_release_leaves_the_lease_of_a_successor_alone(stage: Stage) -> None:
    await stage.lease.ensure()
    stage.clock.advance(31)
    await stage.lease_of(OTHER).ensure()
    await stage.lease.release()
    assert stored(stage.memory).owner == OTHER.owner


async def test_lease_is_not_released_while_a_put_may_still_take_effect(stage: Stage) -> None:
    async def lost() -> None:
        raise TransientStorageError("timeout")

    with pytest.raises(TransientStorageError):
        await stage.publication.put(lost, verify=nothing)
    await stage.lease.release()
    assert stored(stage.memory).owner == ME.owner


async def test_lease_is_released_after_a_put_that_was_refused(stage: Stage) -> None:
    async def refused() -> None:
        raise PreconditionFailed("it exists")

    with pytest.raises(PreconditionFailed):
        await stage.publication.put(refused, verify=nothing)
    await stage.lease.release()
    assert not stage.memory.objects


async def test_what_another_published_meanwhile_is_looked_at_before_the_next_put(stage: Stage) -> None:
    """Also when its files have been compacted and deleted since, so that their names are free again."""
    calls: list[str] = []

    async def put() -> None:
        calls.append("put")

    async def verify() -> None:
        calls.append("verify")
        if len(calls) == 3:
            raise ConflictError("another has published")

    await stage.lease.ensure()
    await stage.publication.resume()
    await stage.publication.put(put, verify=verify)
    stage.clock.advance(31)
    await stage.publication.put(put, verify=verify)
    assert calls == ["put", "put"]
    stage.clock.advance(31)
    other = stage.lease_of(OTHER)
    await other.ensure()
    await other.release()
    for _ in range(2):  # a check that failed is made again
        with pytest.raises(ConflictError):
            await stage.publication.put(put, verify=verify)
        del calls[3:]
        calls[2:] = []
    await stage.publication.put(put, verify=nothing)
    assert calls == ["put", "put", "put"]


async def test_each_database_under_one_lease_looks_for_itself_at_what_another_published(stage: Stage) -> None:
    calls: list[str] = []
    first, second = stage.publication, Publication(stage.lease)

    async def put() -> None:
        calls.append("put")

    async def verify_first() -> None:
        calls.append("first")

    async def verify_second() -> None:
        calls.append("second")

    await first.resume()
    await second.resume()
    stage.clock.advance(31)
    other = stage.lease_of(OTHER)
    await other.ensure()
    await other.release()
    await first.put(put, verify=verify_first)
    await first.put(put, verify=verify_first)
    await second.put(put, verify=verify_second)
    assert calls == ["first", "put", "put", "second", "put"]


async def test_lease_is_kept_while_a_put_of_any_database_may_still_take_effect(stage: Stage) -> None:
    second = Publication(stage.lease)

    async def lost() -> None:
        raise TransientStorageError("timeout")

    with pytest.raises(TransientStorageError):
        await second.put(lost, verify=nothing)
    await stage.publication.put(nothing, verify=nothing)
    await stage.lease.release()
    assert stored(stage.memory).owner == ME.owner
    await second.put(nothing, verify=nothing)
    await stage.lease.release()
    assert not stage.memory.objects


@pytest.mark.logs("lock.json of .* may be abandoned")
@pytest.mark.parametrize("found", ["torn", "hours ahead"])
async def test_lease_that_may_be_abandoned_is_left_to_a_writer_that_renews_it(
    stage: Stage, found: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The other's clock is hours ahead, or its lease was damaged while it was read."""
    theirs = Lease(3, NOW_MS + 4 * 3_600_000, OTHER.owner, OTHER.id)
    data = theirs.encode() if found == "hours ahead" else theirs.encode()[:20]
    await stage.memory.put(LOCK_KEY, data)

    async def renew_once() -> None:
        await trio.sleep(LONGEST_TERM_S - 1)
        await stage.memory.put(LOCK_KEY, data + b" ")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(renew_once)
        with pytest.raises(LeaseHeld if found == "hours ahead" else DamagedFile):
            await stage.lease.ensure()
    assert stage.memory.objects[LOCK_KEY].data == data + b" "


@pytest.mark.logs("lock.json of .* may be abandoned")
async def test_lease_of_a_writer_whose_clock_was_wrong_is_replaced_in_the_next_generation(
    stage: Stage, autojump_clock: trio.testing.MockClock
) -> None:
    await stage.memory.put(LOCK_KEY, Lease(3, NOW_MS + 4 * 3_600_000, OTHER.owner, OTHER.id).encode())
    await stage.lease.ensure()
    assert stored(stage.memory) == Lease(4, NOW_MS + TERM_MS, ME.owner, ME.id)
    assert stage.lease.epoch == 1, "another writer may have published"


async def test_lease_that_is_damaged_in_transit_is_read_again(
    stage: Stage, autojump_clock: trio.testing.MockClock
) -> None:
    class Flipping(WrapperStorage):
        flips = 1

        async def get(self, key: str, range: Range | None = None) -> Blob:
            blob = await super().get(key, range)
            self.flips, flip = 0, self.flips
            return replace(blob, data=b"\0" + blob.data[1:]) if flip else blob

    await stage.lease_of(OTHER).ensure()
    before_s = trio.current_time()
    with pytest.raises(LeaseHeld):
        await ReplicaLease(Flipping(stage.memory), ME, now=stage.clock).ensure()
    assert trio.current_time() - before_s < LONGEST_TERM_S / 10
    stage.clock.advance(31)
    await ReplicaLease(Flipping(stage.memory), ME, now=stage.clock).ensure()
    assert stored(stage.memory).owner == ME.owner


async def test_lease_that_is_contended_without_end_is_an_error(stage: Stage) -> None:
    class Contended(WrapperStorage):
        async def put_if_absent(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
            raise PreconditionFailed("another was faster, and has gone")

    with pytest.raises(ConflictError, match="contend"):
        await ReplicaLease(Contended(stage.storage), ME, now=stage.clock).ensure()


# --- stores that ignore conditions


class Refusing(WrapperStorage):
    """Refuses what it should do: an etag of a put is not the one that it compares with later."""

    async def put_if_match(self, key: str, body: Body, etag: str, *, modified_ms: int | None = None) -> str:
        raise PreconditionFailed("it is in another state", key=key)


async def test_probe_accepts_a_store_that_honours_conditions_and_leaves_nothing(stage: Stage) -> None:
    await require_conditions(stage.storage)
    assert stage.requests == 6
    assert not stage.memory.objects


@pytest.mark.parametrize(
    ("operation", "complaint"),
    [
        (Operation.PUT_IF_ABSENT, "ignores If-None-Match on a put"),
        (Operation.PUT_IF_MATCH, "ignores If-Match on a put"),
        (Operation.DELETE_IF_MATCH, "ignores If-Match on a delete"),
    ],
)
async def test_probe_refuses_a_store_that_ignores_a_condition_and_leaves_nothing(
    operation: Operation, complaint: str
) -> None:
    storage = MemoryStorage()
    with pytest.raises(ConditionsIgnored, match=complaint + ".*--no-lease"):
        await require_conditions(Careless(storage, operation))
    assert not storage.objects


async def test_probe_refuses_a_store_that_misjudges_a_condition_and_leaves_nothing() -> None:
    storage = MemoryStorage()
    with pytest.raises(ConditionsIgnored, match="refuses If-Match on a put although the condition is met"):
        await require_conditions(Refusing(storage))
    assert not storage.objects


@pytest.mark.parametrize(
    ("n", "when"), [*((n, When.BEFORE_EFFECT) for n in range(1, 7)), *((n, When.AFTER_EFFECT) for n in (1, 5, 6))]
)
async def test_probe_that_fails_says_why_and_leaves_nothing(stage: Stage, n: int, when: When) -> None:
    stage.faults.plan = FaultAt(n, fault=Fault(when))
    with pytest.raises(TransientStorageError):
        await require_conditions(stage.storage)
    assert not [key for key in stage.memory.objects if key.startswith(PROBE_PREFIX)]
