"""Makes importing what commands need faster: it is most of the time of a start."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

_BLAS_THREADS = "OPENBLAS_NUM_THREADS"


@contextmanager
def fast_imports() -> Iterator[None]:
    """Import during the block without collecting garbage, which imports do not leave, and without threads of numpy.

    numpy's linear algebra starts a thread for each core when it is imported; nothing here uses it. Programs that are
    started later see no trace of this.
    """
    is_ours = _BLAS_THREADS not in os.environ
    gc.disable()
    if is_ours:
        os.environ[_BLAS_THREADS] = "1"
    try:
        yield
    finally:
        if is_ours:
            del os.environ[_BLAS_THREADS]
        gc.enable()
