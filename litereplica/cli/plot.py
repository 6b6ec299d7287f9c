"""Draws a replica's history: the database's size, the bytes published and the points retained, over time.

matplotlib is imported on use; neither its global state nor a display is needed. The same points give the same SVG, byte
for byte, with the same version of matplotlib.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import UTC
from itertools import chain
from itertools import count as count_from
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litereplica.cli.params import format_size
from litereplica.errors import EnvironmentProblem, PointNotFound
from litereplica.format.names import SNAPSHOT_LEVEL
from litereplica.history.points import Point
from litereplica.times import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = (10.0, 7.5)
"""Width and height of the figure."""
DPI = 120

MAX_BUCKETS = 60
"""Maximum number of bars side by side, so that each is wide enough to be distinguished."""

MIN_BUCKETS = 10
"""The axis has room for at least this many bars, so that a single one does not fill it."""

BUCKETS_MS = (
    *(count * SECOND_MS for count in (1, 5, 10, 30)),
    *(count * MINUTE_MS for count in (1, 5, 10, 30)),
    *(count * HOUR_MS for count in (1, 3, 6, 12)),
    *(count * DAY_MS for count in (1, 2, 7, 14, 28, 91, 182, 364)),
)
"""The possible widths of a bar: common units of time."""

_BUCKET_NAMES = ((DAY_MS, "day"), (HOUR_MS, "hour"), (MINUTE_MS, "minute"), (SECOND_MS, "second"))

_SIZE_COLOUR = "#1f5a8a"
_PUBLISHED_COLOUR = "#c8743a"
_SNAPSHOT_COLOUR = "#08306b"
_LEVEL_COLOURS = ("#c3dbee", "#8fbde0", "#5a9bcd", "#2f78b3", "#2a70a9", "#25689f", "#206095", "#1b588b", "#165081")
"""By level: higher levels are darker."""

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
    "svg.hashsalt": "litereplica",
}


def require_matplotlib() -> None:
    """Raise `EnvironmentProblem` unless matplotlib is installed."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it logs about its caches
    try:
        import matplotlib  # noqa: F401 - only to see if it is installed
    except ImportError as exc:
        raise EnvironmentProblem("--plot needs matplotlib", hint="pip install 'litereplica[plot]'") from exc


def draw(points: Sequence[Point], path: Path, *, title: str) -> None:
    """Draw points, in ascending order, to a .png or .svg file, which is replaced. Points without a time are omitted.

    Raises:
        PointNotFound: no point has a time.
        OSError: the file cannot be written.
    """
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.figure import Figure

    timed = [(point.timestamp_ms, point) for point in points if point.timestamp_ms is not None]
    if not timed:
        raise PointNotFound("there are no points to draw", hint="see 'litereplica history' without --plot")
    with rc_context():
        rcdefaults()  # independent of the user's configuration
        rcParams.update(_STYLE)  # type: ignore[arg-type]  # its stub wants literal names
        figure = Figure(figsize=INCHES, layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        upper, middle, lower = figure.subplots(3, sharex=True, height_ratios=(3, 2, 2))
        width_ms = bucket_ms(min(time for time, _ in timed), max(time for time, _ in timed))
        _draw_size(upper, timed)
        _draw_published(middle, timed, width_ms)
        _draw_points(lower, timed, width_ms)
        _label_times(lower, timed, width_ms)
        vector = path.suffix.lower() == ".svg"
        figure.savefig(path, format="svg" if vector else "png", dpi=DPI, metadata={"Date": None} if vector else None)


def bucket_ms(first_ms: int, last_ms: int) -> int:
    """The smallest width of a bar, in milliseconds, with which the time range takes at most `MAX_BUCKETS` bars."""
    widths = chain(BUCKETS_MS, (BUCKETS_MS[-1] * count for count in count_from(2)))
    return next(width for width in widths if last_ms // width - first_ms // width < MAX_BUCKETS)


def _draw_size(axes: Axes, timed: Sequence[tuple[int, Point]]) -> None:
    times = [_days(time) for time, _ in timed]
    sizes = [point.size or 0 for _, point in timed]
    many = len(timed) > MAX_BUCKETS
    axes.fill_between(times, sizes, step="post", color=_SIZE_COLOUR, alpha=0.15, linewidth=0)
    axes.step(times, sizes, where="post", color=_SIZE_COLOUR, linewidth=1.2, marker="" if many else "o", markersize=3.5)
    snapshots = [(_days(time), point.size or 0) for time, point in timed if SNAPSHOT_LEVEL in point.levels]
    if snapshots:
        at = {"linestyle": "", "marker": "D", "markersize": 5, "markeredgecolor": "white"}
        axes.plot(*zip(*snapshots, strict=True), color=_SNAPSHOT_COLOUR, label="snapshot", **at)  # type: ignore[arg-type]
        _legend(axes, 1)
    axes.set_title(f"Database: {format_size(sizes[-1])}")
    _label_sizes(axes)


def _draw_published(axes: Axes, timed: Sequence[tuple[int, Point]], width_ms: int) -> None:
    buckets: Counter[int] = Counter()
    for time, point in timed:
        buckets[time // width_ms] += point.published
    _bars(axes, buckets, Counter(), width_ms, _PUBLISHED_COLOUR, None)
    axes.set_title(f"Published per {_bucket_name(width_ms)}: {format_size(sum(buckets.values()))} in total")
    _label_sizes(axes)


def _draw_points(axes: Axes, timed: Sequence[tuple[int, Point]], width_ms: int) -> None:
    """Draw stacked bars: points by their highest level, the highest, which is retained longest, at the bottom."""
    from matplotlib.ticker import MaxNLocator

    by_level: dict[int, Counter[int]] = {}
    for time, point in timed:
        by_level.setdefault(point.levels[-1], Counter())[time // width_ms] += 1
    below: Counter[int] = Counter()
    for level in sorted(by_level, reverse=True):
        is_snapshot = level == SNAPSHOT_LEVEL
        colour = _SNAPSHOT_COLOUR if is_snapshot else _LEVEL_COLOURS[level]
        _bars(axes, by_level[level], below, width_ms, colour, "snapshot" if is_snapshot else f"level {level}")
        below += by_level[level]
    axes.set_title(f"Points retained per {_bucket_name(width_ms)}: {len(timed):,} in total")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    _legend(axes, len(by_level))


def _legend(axes: Axes, columns: int) -> None:
    """Draw the legend beside the title."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=columns, frameon=False, handlelength=1)


def _bars(
    axes: Axes, buckets: Counter[int], below: Counter[int], width_ms: int, colour: str, label: str | None
) -> None:
    numbers = sorted(buckets)
    axes.bar(
        [_days(number * width_ms) for number in numbers],
        [buckets[number] for number in numbers],
        width=width_ms / DAY_MS,
        bottom=[below[number] for number in numbers],
        align="edge",
        color=colour,
        edgecolor="white",
        linewidth=0.4,
        label=label,
    )


def _label_sizes(axes: Axes) -> None:
    """Label the vertical axis with sizes, at multiples of binary units."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    unit = 1
    while axes.dataLim.ymax >= 1024 * unit:
        unit *= 1024
    locator = MaxNLocator(nbins=5, steps=[1, 2, 4, 5, 8, 10])
    top = axes.dataLim.ymax * 1.08 or 1
    axes.set_ylim(0, top)
    axes.set_yticks([tick * unit for tick in locator.tick_values(0, top / unit) if tick * unit <= top])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _: format_size(round(size)) if size else "0"))


def _label_times(axes: Axes, timed: Sequence[tuple[int, Point]], width_ms: int) -> None:
    from matplotlib import dates

    untyped: Any = dates
    times = [time for time, _ in timed]
    first, last = min(times) // width_ms * width_ms, (max(times) // width_ms + 1) * width_ms
    margin = max(width_ms // 4, (MIN_BUCKETS * width_ms - (last - first)) // 2)
    axes.set_xlim(_days(first - margin), _days(last + margin))
    locator = untyped.AutoDateLocator(tz=UTC, minticks=4, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(untyped.ConciseDateFormatter(locator, tz=UTC))
    axes.set_xlabel("UTC")


def _bucket_name(width_ms: int) -> str:
    for unit_ms, name in _BUCKET_NAMES:
        if width_ms % unit_ms == 0:
            count = width_ms // unit_ms
            return name if count == 1 else f"{count} {name}s"
    return f"{width_ms} ms"


def _days(time_ms: int) -> float:
    """Days since the epoch, matplotlib's unit of time."""
    return time_ms / DAY_MS
