"""Blocks that a cancellation from outside does not interrupt: half an advance cannot be continued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class ShieldedBlocks:
    """The blocks of one session. They run to their end, unless the session itself has ended (`give_up`)."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self._given_up = False

    @contextmanager
    def block(self) -> Iterator[None]:
        """Shield the block from cancellation until `give_up`."""
        with trio.CancelScope(shield=not self._given_up) as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.remove(scope)

    def give_up(self) -> None:
        """Let cancellations take effect everywhere from now on."""
        self._given_up = True
        for scope in self._scopes:
            scope.shield = False
