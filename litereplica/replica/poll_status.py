"""When polling last succeeded, when it last brought new files, and why it brings none. No I/O."""

from __future__ import annotations

from collections.abc import Callable

from litereplica.errors import LiteReplicaError
from litereplica.types import TXID

SLOW_POLL_S = 3.0
"""From when on a poll that has not ended counts as a problem: it goes on for half a minute if the store is silent."""


class PollStatus:
    """A record of polls. Times are those of `clock`, in seconds.

    `txid` is that of the replica's snapshot, `newest_txid` the newest that is known.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.last_success_at = self.last_progress_at = self._fresh_at = clock()
        self.polls = self.polls_behind = 0
        self._error = ""
        self._began_at: float | None = None  # of the poll that is under way

    @property
    def last_error(self) -> str:
        """Return why the last poll failed, or that the one under way gets no answer; empty if all is well."""
        waited_s = 0.0 if self._began_at is None else self._clock() - self._began_at
        if not self._error and waited_s >= SLOW_POLL_S:
            return f"a poll has been under way for {waited_s:.0f} s"
        return self._error

    def note_begin(self) -> None:
        """Record that a poll begins."""
        self._began_at = self._clock()

    def note_end(self) -> None:
        """Record that it has ended or was cancelled."""
        self._began_at = None

    @property
    def staleness_s(self) -> float:
        """Seconds since the last poll after which nothing newer than the replica's TXID was known."""
        return self._clock() - self._fresh_at

    def note_success(self, *, progress: bool, txid: TXID, newest_txid: TXID) -> None:
        """Record a poll that succeeded; `progress` is True if it brought new files."""
        self.polls += 1
        self.last_success_at = self._clock()
        self._error = ""
        if progress:
            self.last_progress_at = self.last_success_at
        self.polls_behind = self.polls_behind + 1 if newest_txid > txid and not progress else 0
        if not self.polls_behind:
            self._fresh_at = self.last_success_at

    def note_failure(self, error: LiteReplicaError, *, txid: TXID, newest_txid: TXID) -> None:
        """Record a poll that failed."""
        self.polls += 1
        self._error = error.message
        if newest_txid > txid:
            self.polls_behind += 1

    def note_failed_heal(self, error: LiteReplicaError) -> None:
        """Record that no other files were found for pages that vanished or are damaged."""
        self._error = error.message

    def reason(self, *, txid: TXID, newest_txid: TXID) -> str:
        """Return why polls bring nothing although newer TXIDs are known, or an empty string."""
        if not self.polls_behind:
            return ""
        return self.last_error or f"no file leads on from TXID {txid:016x}, the newest is {newest_txid:016x}"
