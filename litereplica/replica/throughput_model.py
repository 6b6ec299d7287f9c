"""Estimates how long the store takes for a number of bytes, from the requests so far. Pure.

time = latency + bytes / bandwidth: a line through the recent requests, by least squares. Decoding counts as a
part of the time, so that a store that is faster than we are is seen as just as fast as we are.
"""

from __future__ import annotations

from dataclasses import dataclass

DECAY = 0.95
"""Weight of each request against the next one: some 20 requests count."""

USUAL_LATENCY_S = 0.02
USUAL_BYTES_PER_S = 50e6
"""What is assumed before the first request, and never quite forgotten: requests of one size alone give no line."""

ASSUMED_WEIGHT = 0.02
"""Weight of what is assumed, against that of the last request."""

_MIN_LATENCY_S = 1e-4
_MIN_BYTES_PER_S, _MAX_BYTES_PER_S = 1e5, 1e10
_FAR = 1 << 20


@dataclass(slots=True)
class ThroughputModel:
    """Latency (s) and bandwidth (bytes/s) of one request among those at the same time."""

    _weight: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def observe(self, size: int, seconds: float) -> None:
        """A request for `size` bytes took so long."""
        self._weight = self._weight * DECAY + 1
        self._x = self._x * DECAY + size
        self._y = self._y * DECAY + seconds
        self._xx = self._xx * DECAY + size * size
        self._xy = self._xy * DECAY + size * seconds

    @property
    def latency_s(self) -> float:
        """Seconds until the first byte of an answer."""
        return self._line()[0]

    @property
    def bytes_per_s(self) -> float:
        """Bytes a second of one answer, once it has begun."""
        return self._line()[1]

    @property
    def bytes_in_latency(self) -> float:
        """What could arrive in the time of one round trip."""
        latency_s, bytes_per_s = self._line()
        return latency_s * bytes_per_s

    def _line(self) -> tuple[float, float]:
        far_s = USUAL_LATENCY_S + _FAR / USUAL_BYTES_PER_S
        weight, x = self._weight + 2 * ASSUMED_WEIGHT, self._x + _FAR * ASSUMED_WEIGHT
        y = self._y + (USUAL_LATENCY_S + far_s) * ASSUMED_WEIGHT
        xx, xy = self._xx + _FAR * _FAR * ASSUMED_WEIGHT, self._xy + _FAR * far_s * ASSUMED_WEIGHT
        slope = (weight * xy - x * y) / (weight * xx - x * x)
        slope = min(max(slope, 1 / _MAX_BYTES_PER_S), 1 / _MIN_BYTES_PER_S)
        return max(_MIN_LATENCY_S, (y - slope * x) / weight), 1 / slope
