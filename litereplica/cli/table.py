"""Lays tables out for terminals of any width. Nothing is ever cut; TXIDs, times and numbers are not folded either.

A table that is too wide is narrowed by folding its long texts (paths, URLs, messages). If that is not enough, each row
becomes a block of lines, `column  value`.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Sequence

MIN_FOLDED = 16
"""Columns that a folded text gets at least."""
WHOLE = 24
"""Cells up to this width are not folded: TXIDs, times with milliseconds, sizes, states."""

_GAP = "  "
_BREAK_AFTER = " /,;&?"


def terminal_width() -> int:
    """Return the columns of the terminal."""
    return shutil.get_terminal_size().columns


def layout(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], *, width: int) -> list[str]:
    """Return the lines of a table that is at most `width` columns wide, if its unbreakable cells allow it.

    `right` is True for columns that are aligned to the right. Columns without any content are left out.
    """
    kept = [position for position in range(len(columns)) if not rows or any(row[position] for row in rows)]
    columns, right = [columns[position] for position in kept], [right[position] for position in kept]
    rows = [[row[position] for position in kept] for row in rows]
    natural = [max(map(cell_width, column)) for column in zip(columns, *rows, strict=True)]
    least = [
        max(min(cell_width(cell), WHOLE if cell_width(cell) <= WHOLE else MIN_FOLDED) for cell in column)
        for column in zip(columns, *rows, strict=True)
    ]
    widths = _narrowed(natural, least, width - len(_GAP) * (len(columns) - 1))
    if widths is None:
        return _blocks(columns, rows, width)
    lines = [_line(columns, widths, right), "─" * (sum(widths) + len(_GAP) * (len(widths) - 1))]
    for row in rows:
        folded = [fold(cell, size) for cell, size in zip(row, widths, strict=True)]
        for position in range(max(map(len, folded))):
            cells = [lines_of[position] if position < len(lines_of) else "" for lines_of in folded]
            lines.append(_line(cells, widths, right))
    return lines


def _narrowed(natural: Sequence[int], least: Sequence[int], available: int) -> list[int] | None:
    """The widths of the columns, the widest ones narrowed until all fit; None if they cannot."""
    widths = list(natural)
    while sum(widths) > available:
        wide = [position for position in range(len(widths)) if widths[position] > least[position]]
        if not wide:
            return None
        widest = max(wide, key=lambda position: widths[position])
        excess = sum(widths) - available
        widths[widest] = max(least[widest], widths[widest] - excess)
    return widths


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    names = max(map(cell_width, columns))
    lines: list[str] = []
    for row in rows:
        if lines:
            lines.append("")
        for name, cell in zip(columns, row, strict=True):
            room = max(WHOLE, width - names - len(_GAP))
            for position, part in enumerate(fold(cell, room) if cell else []):
                lines.append(_padded("" if position else name, names, is_right=False) + _GAP + part)
    return lines


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = [_padded(*each[:2], is_right=each[2]) for each in zip(cells, widths, right, strict=True)]
    return _GAP.join(padded).rstrip()


def _padded(cell: str, width: int, *, is_right: bool) -> str:
    space = " " * (width - cell_width(cell))
    return space + cell if is_right else cell + space


def fold(cell: str, width: int) -> list[str]:
    """Return the lines of a text that is folded to `width` columns, after separators where there are some."""
    lines: list[str] = []
    line = word = ""
    for character in cell:
        word += character
        if cell_width(line + word) > width:
            if line:
                lines.append(line)
                line = ""
            while cell_width(word) > width:
                lines.append(word[:-1])
                word = word[-1]
        if character in _BREAK_AFTER:
            line, word = line + word, ""
    return [*lines, line + word] if line + word or not lines else lines


def cell_width(text: str) -> int:
    """The columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_character_width(character) for character in text)


def _character_width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
