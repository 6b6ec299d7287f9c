"""Manual pages from the `--help` of the commands: litereplica(1), one page for each command, and mount.litereplica(8).

The pages are in the language of man(7), which both groff and mandoc read.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator

import click

from litereplica import __version__
from litereplica.cli import mount_helper
from litereplica.cli.help_formatter import folded
from litereplica.cli.main import COMMANDS, EXIT_CODES, PROGRAM, cli

Pair = tuple[str, str]

MOUNT_HELPER = "mount.litereplica"

EXAMPLE_WIDTH = 68
"""Columns that are left on a terminal of 80."""


def pages() -> dict[str, str]:
    """Return the text of each page, by its path below the directory of a manual."""
    group = cli.context_class(cli, info_name=PROGRAM)
    found = {f"man1/{PROGRAM}.1": _program_page(group)}
    for name in COMMANDS:
        command = cli.get_command(group, name)
        assert command is not None
        found[f"man1/{PROGRAM}-{name}.1"] = _command_page(command, name, group)
    found[f"man8/{MOUNT_HELPER}.8"] = _mount_page(group)
    return found


def _program_page(group: click.Context) -> str:
    commands = [(f"{PROGRAM}-{name}(1)", text) for name, text in COMMANDS.items()]
    codes = [(str(code), text) for code, text in EXIT_CODES.items()]
    return "\n".join(
        [
            *_head(PROGRAM, 1, f"{PROGRAM} - live, read-only SQLite replicas as ordinary files"),
            *_synopsis(group),
            *_description(cli),
            *_section("OPTIONS", _pairs(_options(cli, group))),
            *_section("COMMANDS", _pairs(commands)),
            *_section("EXIT STATUS", _pairs(codes)),
            *_see_also(f"{MOUNT_HELPER}(8)"),
        ]
    )


def _command_page(command: click.Command, name: str, group: click.Context) -> str:
    context = command.context_class(command, info_name=name, parent=group)
    summary = COMMANDS[name].removesuffix(".")
    title = f"{PROGRAM}-{name}"
    return "\n".join(
        [
            *_head(title, 1, f"{title} - {summary[:1].lower()}{summary[1:]}"),
            *_synopsis(context),
            *_description(command),
            *_section("OPTIONS", _pairs(_options(command, context))),
            *_see_also(f"{PROGRAM}(1), which has the exit codes"),
        ]
    )


def _mount_page(group: click.Context) -> str:
    """The page of the mount helper: its docstring, with the options of `litereplica mount` as mount(8) writes them."""
    summary, _, text = inspect.cleandoc(mount_helper.__doc__ or "").partition("\n\n")
    calls, _, text = text.partition("\n\n")
    command = cli.get_command(group, "mount")
    assert command is not None
    options = [
        (_mount_option(names), text)
        for names, text in _options(command, command.context_class(command, info_name="mount", parent=group))
        if not any(each in names for each in mount_helper.MEANT_FOR_A_TERMINAL)
    ]
    example = "s3://backups/app.db?region=eu-west-1 /mnt/app litereplica ro,_netdev,nofail,allow_other 0 0"
    return "\n".join(
        [
            *_head(MOUNT_HELPER, 8, f"{MOUNT_HELPER}, umount.litereplica - mount a replica as a live SQLite file"),
            *_section("SYNOPSIS", _lines(line.strip() for line in calls.splitlines())),
            *_section("DESCRIPTION", _paragraphs(f"{summary}\n\n{text}")),
            *_section("OPTIONS", _pairs([("url=URL", "The replica, instead of SPEC."), *options])),
            *_section("EXAMPLE", ["A line of /etc/fstab:", ".PP", ".nf", _escaped(example), ".fi"]),
            *_see_also(f"{PROGRAM}-mount(1), fstab(5), mount(8), systemd.mount(5)"),
        ]
    )


def _mount_option(names: str) -> str:
    """`-f, --poll-interval DURATION` as an option of mount(8): `poll_interval=DURATION`."""
    long = [each for each in re.split(r", | / ", names) if each.startswith("--")]
    written = [re.sub(r" (.*)", r"=\1", each.removeprefix("--")) for each in long]
    return ", ".join(re.sub(r"^[^=]*", lambda match: match[0].replace("-", "_"), each) for each in written)


def _head(title: str, section: int, name: str) -> list[str]:
    head = f'.TH "{title.upper()}" "{section}" "" "litereplica {__version__}" ""'
    return [head, ".nh", ".ad l", ".SH NAME", _escaped(name)]


def _synopsis(context: click.Context) -> Iterator[str]:
    pieces = context.command.collect_usage_pieces(context)
    return _section("SYNOPSIS", [f"\\fB{_escaped(context.command_path)}\\fR {_escaped(' '.join(pieces))}"])


def _description(command: click.Command) -> Iterator[str]:
    return _section("DESCRIPTION", _paragraphs(inspect.cleandoc(command.help or "")))


def _see_also(text: str) -> Iterator[str]:
    yield from _section("SEE ALSO", [_escaped(text)])
    yield ""


def _options(command: click.Command, context: click.Context) -> list[Pair]:
    options = (param for param in command.get_params(context) if isinstance(param, click.Option))
    records = (option.get_help_record(context) for option in options)
    return [record for record in records if record is not None]


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield f".SH {title}"
    yield from lines


def _pairs(pairs: Iterable[Pair]) -> Iterator[str]:
    for term, text in pairs:
        yield from (".TP", f"\\fB{_escaped(term)}\\fR", _escaped(" ".join(text.split())))


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            yield ".PP"
        if paragraph.startswith("\b\n"):
            title, *lines = paragraph.splitlines()[1:]
            yield _escaped(title)
            yield from _lines(line.strip() for line in lines)
        else:
            yield _escaped(" ".join(paragraph.replace("`", "").split()))


def _lines(lines: Iterable[str]) -> Iterator[str]:
    parts = [part for line in lines for part in folded(line, EXAMPLE_WIDTH)]
    yield from (".RS 4", ".nf", *map(_escaped, parts), ".fi", ".RE")


def _escaped(text: str) -> str:
    """A line of text that is no request and has no escapes; hyphens stay what they are when they are pasted."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("…", "...")
    return f"\\&{text}" if text.startswith(".") else text
