"""The tree of trio's tasks as text, with the function that each waits in."""

from __future__ import annotations

import trio

MAX_TASKS = 2000
"""Tasks that are shown; a writer of thousands of databases has several for each."""


def task_tree() -> str:
    """Return the tree: a line for each task, its name and where it is suspended."""
    root = trio.lowlevel.current_root_task()
    lines: list[str] = []
    left = [] if root is None else [(root, 0)]
    while left and len(lines) < MAX_TASKS:
        task, depth = left.pop()
        lines.append(f"{'  ' * depth}{task.name}: {_place(task)}")
        left += [(child, depth + 1) for nursery in task.child_nurseries for child in nursery.child_tasks]
    if left:
        lines.append("…")
    return "\n".join(lines) + "\n"


def _place(task: trio.lowlevel.Task) -> str:
    """Where a task is suspended in a module of ours, innermost."""
    place = "running"
    for frame, line in task.iter_await_frames():
        module = frame.f_globals.get("__name__", "")
        if module.startswith("litereplica."):
            place = f"{module.removeprefix('litereplica.')}:{line} {frame.f_code.co_name}"
    return place
