"""The probe of a store's conditions leaves nothing behind, and does not name what was never there."""

from __future__ import annotations

import pytest

from litereplica.errors import AccessDenied, StorageError, TransientStorageError
from litereplica.ltxstore.conditions import require_conditions
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
