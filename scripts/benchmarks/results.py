"""What benchmarks return: samples of named subjects, what is to be compared, and the goals."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MOUNT = "mount"
MOUNT_UNHYDRATED = "mount, not hydrated"
VFS = "Litestream VFS"
RESTORE = "litestream restore"
LOCAL = "local file"

MEDIAN = 50.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of a sample; a single value is all three."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and quartiles of `values`."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)}–{number(self.high)})"


@dataclass(frozen=True, slots=True)
class Series:
    """A subject's measurements."""

    subject: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a ratio must not exceed; or, `at_least`, reach."""

    limit: float
    at_least: bool = False

    def met(self, ratio: float) -> bool:
        """True if `ratio` meets the goal."""
        return ratio >= self.limit if self.at_least else ratio <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`of` divided by `to`, two subjects of one result, at their medians or at another percentile.

    Without `to`, the value of `of` itself is held against the goal.
    """

    of: str
    to: str | None
    goal: Goal | None = None
    percent: float = MEDIAN

    @property
    def label(self) -> str:
        """The comparison as text."""
        at = "" if self.percent == MEDIAN else f", {self.percent:g}th percentile"
        return self.of + (f" ÷ {self.to}" if self.to else "") + at


@dataclass(frozen=True, slots=True)
class Ratio:
    """The result of a comparison.

    `spread` has the quartiles of the ratios of all pairs of measurements; None for percentiles.
    """

    value: float
    spread: Spread | None

    def __str__(self) -> str:
        quartiles = f" ({number(self.spread.low)}–{number(self.spread.high)})" if self.spread else ""
        return number(self.value) + quartiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One quantity, measured for several subjects in one run.

    `method` says in a sentence or two what was done. `remarks` are what this run showed beside the samples.
    """

    title: str
    unit: str
    method: str
    series: tuple[Series, ...]
    comparisons: tuple[Comparison, ...] = ()
    remarks: tuple[str, ...] = ()

    def values(self, subject: str) -> tuple[float, ...]:
        """The measurements of a subject."""
        return next(each.values for each in self.series if each.subject == subject)

    def ratio(self, comparison: Comparison) -> Ratio:
        """Compare two subjects, or a subject with 1."""
        of = self.values(comparison.of)
        to = self.values(comparison.to) if comparison.to else (1.0,)
        value = percentile(of, comparison.percent) / percentile(to, comparison.percent)
        if comparison.percent != MEDIAN:
            return Ratio(value, None)
        return Ratio(value, Spread.of([a / b for a, b in itertools.product(of, to)]))


Samples = Mapping[str, Sequence[float]]


def series(samples: Samples, scale: Callable[[float], float] = float) -> tuple[Series, ...]:
    """Samples by subject, in their order, as series; each value as `scale` makes it."""
    return tuple(Series(subject, tuple(map(scale, values))) for subject, values in samples.items())


def percentile(values: Sequence[float], percent: float) -> float:
    """The median; or the smallest value that at least `percent` of the values do not exceed."""
    if percent == MEDIAN:
        return statistics.median(values)
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def number(value: float) -> str:
    """Three significant digits, without an exponent where figures of a benchmark lie."""
    if value == 0 or 0.0001 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1e}"
