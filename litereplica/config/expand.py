"""`$NAME` and `${NAME}` in the text of a configuration file, before it is read as YAML: by the rules of Go's
`os.Expand`, which Litestream uses.

A name is letters, digits and underscores; after `${` it is whatever comes up to `}`. One of `*#$@!?-` or a digit is a
name of one character. A dollar sign that no name follows stays as it is; `${}`, and a `${` that is never closed,
vanish. A variable that is not set is empty. `PID` is the number of this process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_REFERENCE = re.compile(r"\$(?:\{([^}]*)\}|(\{)|([*#$@!?0-9-])|([A-Za-z_][A-Za-z0-9_]*))")
_COMMENT = re.compile(r"^[ \t]*#.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Expanded:
    """The text, and the variables outside of comments that are not set, in the order of their first use."""

    text: str
    unset: tuple[str, ...]


def expand(text: str, variables: Mapping[str, str], *, pid: int) -> Expanded:
    """Replace the references in `text` by the values of `variables`."""
    known = {**variables, "PID": str(pid)}

    def value(match: re.Match[str]) -> str:
        return known.get(_name(match), "")

    used = dict.fromkeys(map(_name, _REFERENCE.finditer(_COMMENT.sub("", text))))
    return Expanded(_REFERENCE.sub(value, text), tuple(name for name in used if name and name not in known))


def _name(match: re.Match[str]) -> str:
    """Empty for what names nothing."""
    return match[1] or match[3] or match[4] or ""
