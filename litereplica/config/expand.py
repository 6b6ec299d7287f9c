"""Replaces `$NAME` and `${NAME}` in the text of a configuration file, by the rules of Go's `os.Expand`, as Litestream.

A name consists of letters, digits and underscores; after `${`, of all characters before `}`. One of `*#$@!?-` or a
digit is a name of one character. A dollar sign without a name is kept; `${}`, and a `${` without `}`, are removed. A
variable that is not set is empty. `PID` is the process ID of this process.

Unlike Litestream, values are put into the scalars after the document was parsed, so that a value can neither add keys
nor break the quoting. As there, a default in shell style, `${NAME:-default}`, is not expanded: it is part of the name.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

_REFERENCE = re.compile(r"\$(?:\{([^}]*)\}|(\{)|([*#$@!?0-9-])|([A-Za-z_][A-Za-z0-9_]*))")
_WORD = re.compile(r"v[0-9a-f]{16}x[0-9]+z")
_DEFAULT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(:?[-=?+]).*", re.DOTALL)
_COMMENT = re.compile(r"^[ \t]*#.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Expanded:
    """A text in which each reference is a word, to be parsed, and what `fill` puts in place of the words.

    `values` and `names` are those of the variables, by their words; `unset` are the unset variables outside of
    comments, in the order of their first use, as `shown`.
    """

    text: str
    values: Mapping[str, str]
    names: Mapping[str, str]
    unset: tuple[str, ...]

    def fill(self, scalar: str) -> tuple[str, tuple[str, ...]]:
        """Return a scalar of the parsed text with the values of its variables, and those that are not set."""
        unset = dict.fromkeys(
            shown(self.names[word]) for word in _WORD.findall(scalar) if self.names.get(word) and not self.values[word]
        )
        return _WORD.sub(lambda match: self.values.get(match[0], match[0]), scalar), tuple(unset)


def expand(text: str, variables: Mapping[str, str], *, pid: int) -> Expanded:
    """Replace the references in `text` by words that have no meaning in YAML, and look up their values."""
    known = {**variables, "PID": str(pid)}
    mark = f"v{secrets.token_hex(8)}"
    values: dict[str, str] = {}
    names: dict[str, str] = {}

    def word(match: re.Match[str]) -> str:
        made = f"{mark}x{len(values)}z"
        names[made] = _name(match)
        values[made] = known.get(names[made], "")
        return made

    used = dict.fromkeys(map(_name, _REFERENCE.finditer(_COMMENT.sub("", text))))
    unset = tuple(shown(name) for name in used if name and name not in known)
    return Expanded(_REFERENCE.sub(word, text), values, names, unset)


def shown(name: str) -> str:
    """The name of a variable for a message; of one with a default in shell style, that it is not expanded."""
    match = _DEFAULT.fullmatch(name)
    return name if match is None else f"{match[1]} (defaults after {match[2]} are not expanded)"


def _name(match: re.Match[str]) -> str:
    """The name of the variable; empty if the reference has none."""
    return match[1] or match[3] or match[4] or ""
