"""The probe of a store's conditions leaves nothing behind, and does not name what was never there."""

from __future__ import annotations

import pytest

from litereplica.errors import AccessDenied, ConditionsIgnored, PreconditionFailed, StorageError, TransientStorageError
from litereplica.ltxstore.conditions import WRONG_ETAG, require_conditions
from litereplica.storage.base import Body
from litereplica.storage.wrappers import Operation
from litereplica.testing.faults import Fault, FaultStorage, Request, When
from litereplica.testing.memory import MemoryStorage


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (Fault(error=AccessDenied), ""),
        (Fault(error=TransientStorageError), "may be left in"),
        (Fault(When.AFTER_EFFECT, TransientStorageError), "may be left in"),
        (None, "is left in"),
    ],
)
async def test_object_is_called_left_only_if_it_was_put(
    caplog: pytest.LogCaptureFixture, put: Fault | None, said: str
) -> None:
    """The deletion fails, too; so does the replacement, where the put succeeds."""

    def plan(request: Request) -> Fault | None:
        if request.call.operation is Operation.PUT_IF_ABSENT:
            return put
        return Fault(error=AccessDenied)

    with pytest.raises(StorageError):
        await require_conditions(FaultStorage(MemoryStorage(), plan))
    assert [record.message.partition(" in ")[0].partition(" ")[2] + " in" for record in caplog.records] == (
        [said] if said else []
    )


async def test_nothing_is_left() -> None:
    storage = MemoryStorage()
    await require_conditions(storage)
    assert await storage.list("") == []


class Forgetful(MemoryStorage):
    """Answers the replacement of an object as if it were not there: it is not, or only this answer says so."""

    is_there = False

    async def put_if_match(self, key: str, body: Body, etag: str, *, modified_ms: int | None = None) -> str:
        if etag != WRONG_ETAG:
            if not self.is_there:
                del self.objects[key]
            raise PreconditionFailed(f"{key} does not exist", key=key)
        return await super().put_if_match(key, body, etag, modified_ms=modified_ms)


async def test_a_store_that_forgets_the_object_is_not_said_to_ignore_conditions() -> None:
    storage = Forgetful()
    with pytest.raises(TransientStorageError, match="does not show"):
        await require_conditions(storage)
    storage.is_there = True
    with pytest.raises(ConditionsIgnored, match="refuses If-Match"):
        await require_conditions(storage)
