"""The report of a soak test, in Markdown."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from soaking.judge import Verdict
from soaking.soak import Run, command_line

MAX_PROBLEMS = 50
NEAR_S = 40.0
LAST_LINES = 10
"""Warnings and errors of each log that are shown in any case."""


def markdown(run: Run, verdict: Verdict) -> str:
    """The whole report: what ran, what happened to it, what was seen, what stayed flat, what was wrong."""
    minutes = (run.ended - run.began) / 60
    moment = datetime.fromtimestamp(run.began, UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines = [
        f"`{command_line(run.plan)}`, {moment}, {minutes:.0f} minutes, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, Linux {platform.release()}, commit {_commit()}.",
        "",
        "| what | count |",
        "|---|---|",
        *_rows(_counts(run, verdict)),
        "",
        "| curve | median of the second third | median of the last third | largest |",
        "|---|---|---|---|",
        *(f"| {curve.name} | {curve.middle:,.0f} | {curve.last:,.0f} | {curve.largest:,.0f} |" for curve in run.curves),
        "",
    ]
    if verdict.problems:
        lines += [f"**{len(verdict.problems)} problems:**", ""]
        lines += [f"- {problem}" for problem in verdict.problems[:MAX_PROBLEMS]]
        lines += ["", "The logs near the problems, and their last warnings and errors:", "", *_log_lines(run, verdict)]
        lines += ["", "The times of trouble, in seconds:", ""]
        lines += [
            f"- {window.begin - run.began:.1f} to {window.end - run.began:.1f}: {window.what}" for window in run.windows
        ]
    else:
        lines += ["No wrong read, and no error beyond those that SEMANTICS allows."]
    return "\n".join([*lines, ""])


def _commit() -> str:
    """The commit that is tested, with a mark if files differ from it."""
    command = ["git", "describe", "--always", "--dirty=, with changes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip() or "unknown"


def _log_lines(run: Run, verdict: Verdict) -> Iterable[str]:
    for name, lines in run.log_lines.items():
        last = [line for line in lines if re.search(" (WARNING|ERROR|CRITICAL) ", line)][-LAST_LINES:]
        for line in lines:
            stamp = line.partition(" ")[0]
            at = datetime.fromisoformat(stamp).timestamp() if stamp.startswith("2") else 0.0
            near = any(begin - NEAR_S <= at <= end + NEAR_S for begin, end in verdict.moments)
            if near or line in last:
                yield f"- {at - run.began:.1f} {name}: {line}"


def _counts(run: Run, verdict: Verdict) -> Iterable[tuple[str, str]]:
    yield "transactions of the application", f"{len(run.ledger) - 1:,}"
    kinds = run.application["counts"]
    yield "of these", ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
    yield "its longest commit", f"{run.application['longest_s'] * 1000:,.0f} ms"
    happened = Counter(window.what for window in run.windows)
    for what, count in sorted(happened.items()):
        lengths = sorted(window.end - window.begin for window in run.windows if window.what == what)
        yield (
            f"{'the store was cut off' if what == 'cut' else f'kill -9 of the {what}'}",
            f"{count}, for {lengths[0]:.1f} to {lengths[-1]:.1f} s",
        )
    yield "requests that failed", ", ".join(f"{count:,} × {what}" for what, count in sorted(run.troubles.items()))
    yield "times that the kernel's pages of a file were dropped", f"{run.drops:,}"
    by_kind: Counter[str] = Counter()
    for seen in run.readers:
        by_kind[seen.kind] += seen.transactions
    yield f"transactions of {len(run.readers)} readers", ", ".join(f"{n:,} {kind}" for kind, n in by_kind.items())
    yield "different states seen", f"{len({counter for seen in run.readers for counter in seen.states}):,}"
    yield "integrity checks", f"{sum(seen.checks for seen in run.readers):,}"
    for reason, count in sorted(verdict.allowed.items()):
        yield f"failed transactions because {reason}", f"{count:,}"
    for name, requests in run.requests.items():
        purposes = ", ".join(f"{count:,} {purpose}" for purpose, count in sorted(requests.gets.items()))
        yield f"files applied by the {name}", f"{requests.applied:,}"
        yield "its GETs with a body, by purpose", purposes
        yield "of these, to start and to follow, for each file applied", f"{requests.to_follow:.2f}"
    for name, count in sorted(run.warnings.items()):
        if count:
            yield f"log lines: {name}", f"{count:,}"


def _rows(pairs: Iterable[tuple[str, str]]) -> Iterable[str]:
    return (f"| {name} | {value} |" for name, value in pairs)
