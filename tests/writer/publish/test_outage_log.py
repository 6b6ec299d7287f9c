"""What is logged of a store that does not answer: silence once, and the first answer after it, if there is one."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from litereplica.errors import NotFound, TransientStorageError
from litereplica.writer.publish.outage_log import SILENCE_S, OutageLog

SILENCE = f"s3://b has not answered for {SILENCE_S:.0f} s; waiting"
AGAIN = "s3://b answers again"


@pytest.mark.parametrize(
    ("error", "again"),
    [(None, True), (NotFound("no such key"), True), (TransientStorageError("no route to host"), False)],
)
async def test_a_store_answers_again_only_if_it_has_answered(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, error: Exception | None, again: bool
) -> None:
    caplog.set_level("INFO")
    outages = OutageLog("s3://b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outages.run)
        for _ in range(3):
            try:
                with outages.waiting():
                    await trio.sleep(2 * SILENCE_S)
                    if error is not None:
                        raise error
            except (NotFound, TransientStorageError):
                await trio.sleep(1)
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert [record.message for record in caplog.records] == ([SILENCE, AGAIN] * 3 if again else [SILENCE])
