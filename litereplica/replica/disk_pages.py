"""Pages on the local disk (to come)."""

from __future__ import annotations

from collections.abc import Sequence


class DiskPages:
    def holds(self, key: int) -> bool:
        return False

    async def read(self, keys: Sequence[int]) -> dict[int, bytes]:
        return {}

    def write_soon(self, pages: dict[int, bytes]) -> None:
        return
