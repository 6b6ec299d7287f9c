"""What a replica reports to those that hold maps or cached pages of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from litereplica.replica.page_map import PageMap


class ReplicaObserver:
    """Base of the observers that `Replica.subscribe` takes. Each method does nothing until it is overridden.

    All are called on the trio thread.
    """

    def on_block(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], pages: list[bytes]) -> None:
        """One request to the store brought these pages. Must not block."""

    async def on_relocation(self, before: PageMap, after: PageMap, changed: NDArray[np.uint32]) -> None:
        """`after` is about to replace `before`; only the pages in `changed` may differ in content.

        Cached pages already have the keys of `after`.
        """
