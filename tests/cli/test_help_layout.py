"""Help at any width, and as manual pages: nothing is cut, and nothing is lost."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from litereplica.cli.help_formatter import WORD, folded
from litereplica.cli.main import COMMANDS, PROGRAM, cli
from man_pages import pages

WIDTHS = (50, 80, 120)


def help_of(name: str, width: int) -> str:
    group = cli.context_class(cli, info_name=PROGRAM, terminal_width=width, max_content_width=width)
    command = cli if not name else cli.get_command(group, name)
    assert command is not None
    context = command.context_class(
        command, info_name=name or PROGRAM, parent=group if name else None, terminal_width=width,
        max_content_width=width, help_option_names=["-h", "--help"],
    )  # fmt: skip
    return command.get_help(context)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_has_the_same_words_at_every_width_and_lines_that_fit(name: str) -> None:
    everything = help_of(name, 1000).split()
    for width in WIDTHS:
        text = help_of(name, width)
        assert [word for word in text.split() if word != "\\"] == everything
        for line in text.splitlines():
            longer = [word for word in WORD.findall(line) if len(word) > width // 2]
            assert len(line) <= width or longer, line  # a URL, or a quoted word


@pytest.mark.parametrize(
    ("line", "width", "expected"),
    [
        ("  a b c", 20, ["  a b c"]),
        ("  command --option 'a b  c' last", 20, ["  command --option \\", "      'a b  c' \\", "      last"]),
        ('x "a b" s3://bucket/quite-long', 12, ['x "a b" \\', "    s3://bucket/quite-long"]),
        ("  " + "x" * 30, 10, ["  " + "x" * 30]),
    ],
)
def test_command_line_is_continued_between_words_only(line: str, width: int, expected: list[str]) -> None:
    assert folded(line, width) == expected


def test_manual_pages_name_every_command_and_option() -> None:
    texts = pages()
    group = cli.context_class(cli, info_name=PROGRAM)
    for name in COMMANDS:
        command = cli.get_command(group, name)
        assert command is not None
        text = texts[f"man1/{PROGRAM}-{name}.1"].replace("\\-", "-")
        for param in command.params:
            assert all(opt in text for opt in param.opts if isinstance(param, click.Option)), (name, param.opts)
        assert f"litereplica-{name}(1)" in texts[f"man1/{PROGRAM}.1"].replace("\\-", "-")
    helper = texts["man8/mount.litereplica.8"].replace("\\-", "-")
    for option in ("poll_interval=DURATION", "allow_other", "config=FILE", "url=URL"):
        assert f"\\fB{option}" in helper
    assert "foreground" not in helper


@pytest.mark.skipif(shutil.which("man") is None or shutil.which("groff") is None, reason="needs man and groff")
@pytest.mark.slow
def test_man_finds_nothing_wrong_with_the_pages(tmp_path: Path) -> None:
    for name in ("man1/litereplica.1", "man1/litereplica-restore.1", "man8/mount.litereplica.8"):
        page = tmp_path / Path(name).name
        page.write_text(pages()[name])
        command = ["man", "--warnings", "--encoding=UTF-8", "--local-file", str(page)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={"MANWIDTH": "80", "PATH": "/usr/bin:/bin"}
        )
        assert done.stderr == ""
        assert "NAME" in done.stdout
        assert not re.search(r"\\[a-z(&-]", done.stdout)
