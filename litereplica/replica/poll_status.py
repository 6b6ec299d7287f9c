"""How polling goes: when it last worked, when it last brought something, and why it brings nothing. No I/O."""

from __future__ import annotations

from collections.abc import Callable

from litereplica.errors import LiteReplicaError
from litereplica.types import TXID


class PollStatus:
    """A record of polls; times are those of `clock`, in seconds. TXIDs are ours, and the newest that is known."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.last_success_at = self.last_progress_at = self._fresh_at = clock()
        self.polls = self.polls_behind = 0
        self.last_error = ""

    @property
    def staleness_s(self) -> float:
        """How long ago the store had nothing newer than what we have, as far as we know."""
        return self._clock() - self._fresh_at

    def note_success(self, *, progress: bool, txid: TXID, newest_txid: TXID) -> None:
        """A poll has worked; with `progress` it has brought something."""
        self.last_success_at = self._clock()
        self.last_error = ""
        if progress:
            self.last_progress_at = self.last_success_at
        self.polls_behind = self.polls_behind + 1 if newest_txid > txid and not progress else 0
        if not self.polls_behind:
            self._fresh_at = self.last_success_at

    def note_failure(self, error: LiteReplicaError, *, txid: TXID, newest_txid: TXID) -> None:
        """A poll has failed."""
        self.last_error = error.message
        if newest_txid > txid:
            self.polls_behind += 1

    def reason(self, *, txid: TXID, newest_txid: TXID) -> str:
        """Why there is no progress although there is more; empty when all is well."""
        if not self.polls_behind:
            return ""
        return self.last_error or f"no file leads on from TXID {txid:016x}, the newest is {newest_txid:016x}"
