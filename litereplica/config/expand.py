"""Replaces `$NAME` and `${NAME}` in the text of a configuration file, by the rules of Go's `os.Expand`, as Litestream.

A name consists of letters, digits and underscores; after `${`, of all characters before `}`. One of `*#$@!?-` or a
digit is a name of one character. A dollar sign without a name is kept; `${}`, and a `${` without `}`, are removed. A
variable that is not set is empty. `PID` is the process ID of this process.

Unlike Litestream, values are put into the scalars after the document was parsed, so that a value can neither add keys
nor break the quoting.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

_REFERENCE = re.compile(r"\$(?:\{([^}]*)\}|(\{)|([*#$@!?0-9-])|([A-Za-z_][A-Za-z0-9_]*))")
_WORD = re.compile(r"v[0-9a-f]{16}x[0-9]+z")
_COMMENT = re.compile(r"^[ \t]*#.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Expanded:
    """A text in which each reference is a word, to be parsed, and the `values` that `fill` puts in place of the words.

    `unset` are the unset variables outside of comments, in the order of their first use.
    """

    text: str
    values: Mapping[str, str]
    unset: tuple[str, ...]

    def fill(self, scalar: str) -> str:
        """Return a scalar of the parsed text with the values of its variables."""
        return _WORD.sub(lambda match: self.values.get(match[0], match[0]), scalar)


def expand(text: str, variables: Mapping[str, str], *, pid: int) -> Expanded:
    """Replace the references in `text` by words that have no meaning in YAML, and look up their values."""
    known = {**variables, "PID": str(pid)}
    mark = f"v{secrets.token_hex(8)}"
    values: dict[str, str] = {}

    def word(match: re.Match[str]) -> str:
        made = f"{mark}x{len(values)}z"
        values[made] = known.get(_name(match), "")
        return made

    used = dict.fromkeys(map(_name, _REFERENCE.finditer(_COMMENT.sub("", text))))
    unset = tuple(name for name in used if name and name not in known)
    return Expanded(_REFERENCE.sub(word, text), values, unset)


def _name(match: re.Match[str]) -> str:
    """The name of the variable; empty if the reference has none."""
    return match[1] or match[3] or match[4] or ""
