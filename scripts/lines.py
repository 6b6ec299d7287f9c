"""Count the code lines of Python files: lines that are neither blank nor part of a docstring or a comment."""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER}


def code_lines(source: str) -> set[int]:
    """Numbers (from 1) of the lines that hold code. A string that stands as a statement counts as a docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def count(path: Path) -> Counter[str]:
    """Code lines by directory, of one file or of all files below a directory."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    counts: Counter[str] = Counter()
    for file in files:
        directory = file.parent.relative_to(ROOT) if file.is_relative_to(ROOT) else file.parent
        counts[str(directory)] += len(code_lines(file.read_text(encoding="utf-8")))
    return counts


def main() -> None:
    """Count and print the code lines of each package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="*", type=Path, help="package, directory or file (default: litereplica)")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    for path in options.path or [ROOT / "litereplica"]:
        counts += count(path)
    for directory in sorted(counts):
        print(f"{counts[directory]:7,} {directory}")
    print(f"{counts.total():7,} total")


if __name__ == "__main__":
    main()
