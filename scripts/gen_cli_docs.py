"""Write docs/CLI.md from the `--help` of every command; with `--check`, compare instead of writing.

The text depends on the commands alone: the width is fixed, and no terminal is asked.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from litereplica.cli.main import COMMANDS, PROGRAM, cli

WIDTH = 100
TARGET = Path(__file__).resolve().parents[1] / "docs" / "CLI.md"

INTRODUCTION = """# Commands

The reference of the command line: what `--help` prints. Written by `scripts/gen-cli-docs`; do not edit.

Data goes to stdout, everything else to stderr. An error is one line, `litereplica: error: what happened: what to
do next`, and an exit code from the list below. Durations have units (`500ms`, `1s`, `1h30m`, `7d`), and so have sizes
(`64MiB`, `1GiB`, `500KB`).
"""


def reference() -> str:
    """The whole document."""
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
    return click.Context(command, info_name=name, parent=parent, **settings)


def _section(title: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```text\n{lines}\n```\n"


def main() -> None:
    """Write docs/CLI.md, or check it with `--check`."""
    if sys.argv[1:] == ["--check"]:
        if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != reference():
            sys.exit("docs/CLI.md is out of date: run scripts/gen-cli-docs")
    elif sys.argv[1:]:
        sys.exit(f"unknown argument {sys.argv[1]}: --check is all there is")
    else:
        TARGET.write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
