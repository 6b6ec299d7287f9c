"""Options with one dash, as Litestream has them."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from litereplica.cli.one_dash import with_two_dashes
from litereplica.errors import ExitCode
from tests.cli.program import program


@click.command()
@click.option("-o", "output")
@click.option("-f", "follow", is_flag=True)
@click.option("--force", is_flag=True)
@click.option("--json/--no-json", "as_json")
@click.option("--txid")
def command(**_: object) -> None:
    """A command."""


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["-force", "-o", "x.db", "URL"], ["--force", "-o", "x.db", "URL"]),
        (["-f", "-o", "x.db"], ["-f", "-o", "x.db"]),
        (["-txid=05", "--txid", "6"], ["--txid=05", "--txid", "6"]),
        (["-txid", "-force"], ["--txid", "-force"]),
        (["-json=true", "-force=false", "-no-json"], ["--json", "--no-json"]),
        (["-force", "--", "-force"], ["--force", "--", "-force"]),
        (["-", "-5", "a-force"], ["-", "-5", "a-force"]),
        (["--txid", "", "", "-o", ""], ["--txid", "", "", "-o", ""]),
        (["-o=x.db", "--o", "y.db", "--o=z.db"], ["-o", "x.db", "-o", "y.db", "-o", "z.db"]),
        (["--force=false", "-f=true", "--f=0"], ["-f"]),
        (["-json=false", "-no-json=false", "--no-json=1"], ["--no-json", "--json", "--no-json"]),
        (["--unknown=3", "--unknown"], ["--unknown=3", "--unknown"]),
    ],
)
def test_one_dash_means_the_option_of_that_name(given: list[str], meant: list[str]) -> None:
    assert with_two_dashes(command, given, click.Context(command)) == meant


@pytest.mark.parametrize("word", ["-fo", "-forced", "-of"])
def test_a_word_that_is_no_option_is_not_a_bundle_of_letters(word: str) -> None:
    with pytest.raises(click.NoSuchOption) as caught:
        with_two_dashes(command, [word], click.Context(command))
    assert caught.value.option_name == word


def test_options_before_a_command_end_at_its_name() -> None:
    given = ["-txid", "5", "-force", "other", "-force"]
    assert with_two_dashes(command, given, click.Context(command), leading=True) == [
        *("--txid", "5", "--force"),
        *("other", "-force"),
    ]


def test_a_flag_that_is_neither_true_nor_false_is_refused() -> None:
    with pytest.raises(click.BadParameter, match="neither true nor false"):
        with_two_dashes(command, ["-force=maybe"], click.Context(command))


@pytest.mark.slow
def test_restore_with_litestreams_options_overwrites_and_does_not_follow(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    url = f"file://{tmp_path}/none"
    done = program("restore", "-force", "-o", tmp_path / "x.db", url)
    assert done.returncode == ExitCode.NOT_FOUND, "with -f it would wait for a replica to follow"
    wrong = program("restore", "-forces", "-o", tmp_path / "x.db", url)
    assert wrong.returncode == ExitCode.USAGE
    assert "-forces" in wrong.stderr
