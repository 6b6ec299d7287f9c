"""What of a soak test was wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from soaking.chaos import Window
from soaking.reader import Seen
from soaking.soak import Run

READ_TIMEOUT_S = 30.0
SLACK_S = 5.0
RECOVERY_S = 15.0
"""After an outage a mount recovers within 6 s, and a request that the network dropped delays this by its timeout."""
NOTICED_S = 20.0
"""How long after a kill a connection that was idle notices that it is dead: thinking, and a busy machine."""
FLAT = 1.3
"""The last third may be so many times the second one."""
MAX_GETS_PER_FILE = 1.2
MIN_RATE = 0.8
"""Of the planned rate of the application: less does not test what it should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`problems` must be empty. `allowed` are failures that SEMANTICS allows, by kind of trouble.

    `moments` are the beginnings and ends of the failures among the problems.
    """

    problems: list[str]
    allowed: Counter[str]
    moments: list[tuple[float, float]]


def judge(run: Run) -> Verdict:
    """Compare with the ledger, the windows of trouble and the limits."""
    problems = list(run.faults)
    rate = (len(run.ledger) - 1) / (run.plan.minutes * 60)
    if rate < MIN_RATE * run.plan.rate:
        problems.append(f"the application made {rate:.1f} transactions a second, of {run.plan.rate:g}")
    allowed: Counter[str] = Counter()
    moments: list[tuple[float, float]] = []
    for number, seen in enumerate(run.readers):
        name = f"reader {number} ({seen.kind}, {seen.mount})"
        if not (seen.transactions or seen.failures or seen.wrong):
            problems.append(f"{name} has seen nothing")
        problems += [f"{name}: {wrong}" for wrong in seen.wrong]
        problems += [f"{name}: {wrong}" for wrong in _not_in_the_ledger(seen, run)]
        for begin, end, error in seen.failures:
            reason = _excuse(seen, begin, end, run.windows)
            if reason:
                allowed[reason] += 1
            else:
                moments.append((begin, end))
                problems.append(f"{name}: {error} at {begin - run.began:.1f} to {end - run.began:.1f} s")
    problems += _not_flat(run)
    return Verdict(problems=problems, allowed=allowed, moments=moments)


def _not_in_the_ledger(seen: Seen, run: Run) -> list[str]:
    wrong = []
    for counter, state in seen.states.items():
        if counter not in run.ledger or run.ledger[counter][1] != state:
            wrong.append(f"{state} is not in the ledger")
    for at, state_ in seen.past:
        state = tuple(state_)
        if state[0] not in run.ledger or run.ledger[state[0]][1] != state:
            wrong.append(f"past state {state} is not in the ledger")
        elif run.ledger[state[0]][0] > at + SLACK_S:
            wrong.append(f"{state} is later than the time that was asked for")
    return wrong


def _excuse(seen: Seen, begin: float, end: float, windows: list[Window]) -> str:
    """The trouble that allows this failure, by SEMANTICS; nothing if none does."""
    for window in windows:
        if window.what == seen.mount and begin <= window.end + NOTICED_S and end >= window.begin:
            return "the daemon of the mount was killed"
        silent = window.end - window.begin > READ_TIMEOUT_S - SLACK_S
        begun = window.begin + READ_TIMEOUT_S - SLACK_S
        if window.what == "cut" and silent and begin <= window.end + RECOVERY_S and end >= begun:
            return "the store was silent for longer than the read timeout"
    return ""


def _not_flat(run: Run) -> list[str]:
    """Curves that rise, and requests that are too many. Short runs have no thirds to compare."""
    problems = []
    if run.plan.minutes >= 20:
        problems += [
            f"{curve.name}: {curve.middle:,.0f} in the second third, {curve.last:,.0f} in the last"
            for curve in run.curves
            if curve.last > FLAT * curve.middle + 5
        ]
    kept = run.requests["kept mount"]
    if not kept.applied:
        problems.append("nothing is known of the requests of the kept mount")
    elif kept.to_follow > MAX_GETS_PER_FILE:
        problems.append(f"{kept.to_follow:.2f} GETs with a body for each file applied")
    return problems
