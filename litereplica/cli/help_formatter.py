"""The layout of `--help`: nothing is cut, whatever the width of the terminal.

On a narrow terminal an option stands above its text instead of beside it. Names are not broken at their hyphens: they
are wrapped as non-breaking hyphens, and written as they were. Lines of an example are continued with a
backslash, between words and never inside quotes, so that they can still be pasted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import click

NARROW = 70
"""Below this width in columns the text beside a usual option would have less than 40."""

WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""")
"""A word of a command line, whose quotes may hold spaces."""
_CONTINUED = " \\"
_NON_BREAKING_HYPHEN = "\N{NON-BREAKING HYPHEN}"


class Formatter(click.HelpFormatter):
    """Formats help."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        """Write the usage line; a word that does not fit beside the program's name stands below it."""
        start = f"{'Usage: ' if prefix is None else prefix}{prog}"
        longest = max(map(len, args.split()), default=0)
        if len(start) + 1 + longest <= self.width:
            super().write_usage(prog, args, prefix)
            return
        self.write(f"{start}\n")
        with self.indentation(), self.indentation():
            super().write_text(args)

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write terms, and their texts beside or below them."""
        rows = [(term, _unbroken(text)) for term, text in rows]
        super().write_dl(rows, col_max if self.width >= NARROW else self.width // 4, col_spacing)

    def write_text(self, text: str) -> None:
        """Write paragraphs. One that begins with `\\b` is an example: its lines stay lines."""
        width = self.width - self.current_indent
        paragraphs = text.split("\n\n")
        for number, paragraph in enumerate(paragraphs):
            if paragraph.lstrip().startswith("\b"):
                lines = paragraph.lstrip().splitlines()
                paragraph = "\n".join(["\b", *(part for line in lines[1:] for part in folded(line, width))])
            super().write_text(_unbroken(paragraph))
            if number + 1 < len(paragraphs):
                self.write_paragraph()

    def getvalue(self) -> str:
        """Return what was written."""
        return super().getvalue().replace(_NON_BREAKING_HYPHEN, "-")


class HelpContext(click.Context):
    """The context of every command of the program."""

    formatter_class = Formatter


def _unbroken(text: str) -> str:
    return text.replace("-", _NON_BREAKING_HYPHEN)


def folded(line: str, width: int) -> list[str]:
    """Return a command line in lines of at most `width` columns, as far as its words allow."""
    indent = line[: len(line) - len(line.lstrip())]
    lines = [indent]
    for word in WORD.findall(line):
        fits = len(lines[-1]) + len(word) + 1 + len(_CONTINUED) <= width or len(line) <= width
        if lines[-1].strip() and not fits:
            lines[-1] += _CONTINUED
            lines.append(f"{indent}    {word}")
        else:
            lines[-1] += word if not lines[-1].strip() else f" {word}"
    return lines
