"""How long-running work reports the bytes that it has read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

Advance: TypeAlias = Callable[[int], None]
"""Called with the number of bytes read since the last call."""

Progress: TypeAlias = Callable[[int], AbstractContextManager[Advance]]
"""Called with the number of bytes that will be read; the context's value is called for each part of them."""


def no_progress(total_bytes: int) -> AbstractContextManager[Advance]:
    """Report nothing."""
    return nullcontext(lambda done: None)
