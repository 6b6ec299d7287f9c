"""What must stay flat during a soak test: memory, descriptors and threads of the daemons, objects in the store."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SAMPLE_EVERY_S = 5.0
THIRDS = 3


@dataclass(frozen=True, slots=True)
class Curve:
    """Values of one thing over the whole run, in its order."""

    name: str
    values: tuple[float, ...]

    @property
    def middle(self) -> float:
        """The median of the second third; by then everything has been used once."""
        return statistics.median(self._third(1))

    @property
    def last(self) -> float:
        """The median of the last third."""
        return statistics.median(self._third(2))

    @property
    def largest(self) -> float:
        """The largest of all."""
        return max(self.values)

    def _third(self, number: int) -> tuple[float, ...]:
        size = max(1, len(self.values) // THIRDS)
        return self.values[number * size :][:size] or self.values[-1:]


class Watch:
    """Samples from `start` to `stop`, in a thread of its own."""

    def __init__(self, daemons: dict[str, Callable[[], int]], count_objects: Callable[[], tuple[int, int]]) -> None:
        self._daemons = daemons
        self._count_objects = count_objects
        self._values: dict[str, list[float]] = defaultdict(list)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> list[Curve]:
        """End, and return what was sampled."""
        self._stop.set()
        self._thread.join()
        return [Curve(name, tuple(values)) for name, values in sorted(self._values.items())]

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            for name, pid in self._daemons.items():
                with contextlib.suppress(OSError, AssertionError):  # it is down
                    self._sample(name, pid())
            with contextlib.suppress(Exception):  # the store is watched from outside of the proxy; it may be busy
                objects, size = self._count_objects()
                self._values["objects in the store"].append(objects)
                self._values["MB in the store"].append(size / 1e6)

    def _sample(self, name: str, pid: int) -> None:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        self._values[f"MB of memory, {name}"].append(int(status["VmRSS"].split()[0]) / 1000)
        self._values[f"threads, {name}"].append(int(status["Threads"]))
        self._values[f"descriptors, {name}"].append(len(list(Path(f"/proc/{pid}/fd").iterdir())))


def minutes_since(begin: float) -> float:
    """Minutes from `begin`, in Unix time."""
    return (time.time() - begin) / 60
