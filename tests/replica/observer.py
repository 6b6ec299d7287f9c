"""An observer of a replica for tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from litereplica.replica.observer import ReplicaObserver


class Observer(ReplicaObserver):
    """Passes the page numbers of each block to `on_block`."""

    def __init__(self, on_block: Callable[[list[int]], None] | None = None) -> None:
        self._on_block = on_block

    def on_block(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], pages: list[bytes]) -> None:
        if self._on_block is not None:
            self._on_block(pgnos.tolist())
