"""When polling last succeeded, when it last brought new files, and why it brings none. No I/O."""

from __future__ import annotations

from collections.abc import Callable

from litereplica.errors import LiteReplicaError
from litereplica.types import TXID


class PollStatus:
    """A record of polls. Times are those of `clock`, in seconds.

    `txid` is that of the replica's snapshot, `newest_txid` the newest that is known.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.last_success_at = self.last_progress_at = self._fresh_at = clock()
        self.polls = self.polls_behind = 0
        self.last_error = ""

    @property
    def staleness_s(self) -> float:
        """Seconds since the last poll after which nothing newer than the replica's TXID was known."""
        return self._clock() - self._fresh_at

    def note_success(self, *, progress: bool, txid: TXID, newest_txid: TXID) -> None:
        """Record a poll that succeeded; `progress` is True if it brought new files."""
        self.polls += 1
        self.last_success_at = self._clock()
        self.last_error = ""
        if progress:
            self.last_progress_at = self.last_success_at
        self.polls_behind = self.polls_behind + 1 if newest_txid > txid and not progress else 0
        if not self.polls_behind:
            self._fresh_at = self.last_success_at

    def note_failure(self, error: LiteReplicaError, *, txid: TXID, newest_txid: TXID) -> None:
        """Record a poll that failed."""
        self.polls += 1
        self.last_error = error.message
        if newest_txid > txid:
            self.polls_behind += 1

    def note_failed_heal(self, error: LiteReplicaError) -> None:
        """Record that no other files were found for pages that vanished or are damaged."""
        self.last_error = error.message

    def reason(self, *, txid: TXID, newest_txid: TXID) -> str:
        """Return why polls bring nothing although newer TXIDs are known, or an empty string."""
        if not self.polls_behind:
            return ""
        return self.last_error or f"no file leads on from TXID {txid:016x}, the newest is {newest_txid:016x}"
