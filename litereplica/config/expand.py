"""Replaces `$NAME` and `${NAME}` in the text of a configuration file, by the rules of Go's `os.Expand`, as Litestream.

A name consists of letters, digits and underscores; after `${`, of all characters before `}`. One of `*#$@!?-` or a
digit is a name of one character. A dollar sign without a name is kept; `${}`, and a `${` without `}`, are removed. A
variable that is not set is empty. `PID` is the process ID of this process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_REFERENCE = re.compile(r"\$(?:\{([^}]*)\}|(\{)|([*#$@!?0-9-])|([A-Za-z_][A-Za-z0-9_]*))")
_COMMENT = re.compile(r"^[ \t]*#.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Expanded:
    """The expanded text, and the unset variables outside of comments, in the order of their first use."""

    text: str
    unset: tuple[str, ...]


def expand(text: str, variables: Mapping[str, str], *, pid: int) -> Expanded:
    """Replace the references in `text` with the values of `variables`."""
    known = {**variables, "PID": str(pid)}

    def value(match: re.Match[str]) -> str:
        return known.get(_name(match), "")

    used = dict.fromkeys(map(_name, _REFERENCE.finditer(_COMMENT.sub("", text))))
    return Expanded(_REFERENCE.sub(value, text), tuple(name for name in used if name and name not in known))


def _name(match: re.Match[str]) -> str:
    """The name of the variable; empty if the reference has none."""
    return match[1] or match[3] or match[4] or ""
