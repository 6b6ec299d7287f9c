"""Write docs/CLI.md and the manual pages from the `--help` of every command; with `--check`, compare instead.

The texts depend on the commands alone: the width is fixed, and no terminal is asked. `man_pages.py` has the form of a
manual page.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from litereplica.cli.main import COMMANDS, PROGRAM, cli
from man_pages import pages

WIDTH = 100
ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "CLI.md"
MANUAL = ROOT / "deploy" / "man"

INTRODUCTION = """# Commands

The reference of the command line: what `--help` prints. Written by `scripts/gen-cli-docs`, as are the manual pages in
`deploy/man`; do not edit.

Data goes to stdout, everything else to stderr. An error is one line, `litereplica: error: what happened: what to
do next`, and an exit code from the list below. Durations have units (`500ms`, `1s`, `1h30m`, `7d`), and so have sizes
(`64MiB`, `1GiB`, `500KB`).
"""


def reference() -> str:
    """The text of docs/CLI.md."""
    group = _context(cli, PROGRAM)
    sections = [_section(PROGRAM, cli.get_help(group))]
    for name in COMMANDS:
        command = cli.get_command(group, name)
        assert command is not None
        text = command.get_help(_context(command, name, parent=group))
        sections.append(_section(f"{PROGRAM} {name}", text))
    return "\n".join([INTRODUCTION, *sections])


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    return command.context_class(command, info_name=name, parent=parent, **settings)


def _section(title: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```text\n{lines}\n```\n"


def documents() -> dict[Path, str]:
    """The text of every file that is written."""
    return {TARGET: reference(), **{MANUAL / name: text for name, text in pages().items()}}


def problems() -> list[str]:
    """The written files that differ from what they should be, or should not be there."""
    wanted = documents()
    found = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    found += [path for path in MANUAL.rglob("*.[0-9]") if path not in wanted]
    return [str(path.relative_to(ROOT)) for path in found]


def main() -> None:
    """Write the files, or check them with `--check`."""
    if sys.argv[1:] == ["--check"]:
        if found := problems():
            sys.exit(f"{', '.join(found)}: out of date: run scripts/gen-cli-docs")
    elif sys.argv[1:]:
        sys.exit(f"unknown argument {sys.argv[1]}: --check is all there is")
    else:
        for path in MANUAL.rglob("*.[0-9]"):
            path.unlink()
        for path, text in documents().items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
