"""An observer of a replica for tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from litereplica.replica.observer import ReplicaObserver


class Observer(ReplicaObserver):
    """Passes the page numbers of each block to `on_block`, and holds the files `held`."""

    def __init__(
        self, on_block: Callable[[list[int]], None] | None = None, *, held: NDArray[np.uint32] | None = None
    ) -> None:
        self.held = held
        self._on_block = on_block

    def held_files(self) -> NDArray[np.uint32]:
        return super().held_files() if self.held is None else self.held

    def on_block(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], pages: list[bytes]) -> None:
        if self._on_block is not None:
            self._on_block(pgnos.tolist())
