"""The forms of --hydrate, which stands without a value, too."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from litereplica.cli.mount_prefix import HYDRATE, MountCommand


@click.command(cls=MountCommand)
@click.option("--hydrate", type=click.Choice(HYDRATE))
@click.argument("words", nargs=-1)
def command(hydrate: str | None, words: tuple[str, ...]) -> None:
    click.echo(f"{hydrate} {' '.join(words)}")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("s3://b/p /mnt", "None s3://b/p /mnt"),
        ("--hydrate s3://b/p /mnt", "all s3://b/p /mnt"),
        ("s3://b/p /mnt --hydrate", "all s3://b/p /mnt"),
        ("--hydrate small s3://b/p /mnt", "small s3://b/p /mnt"),
        ("--hydrate=none s3://b/p /mnt", "none s3://b/p /mnt"),
        ("--no-hydrate s3://b/p /mnt", "none s3://b/p /mnt"),
        ("-- --hydrate small", "None --hydrate small"),
    ],
)
def test_hydrate_has_a_value_or_none(arguments: str, expected: str) -> None:
    assert CliRunner().invoke(command, arguments.split()).output.strip() == expected


def test_another_value_is_refused() -> None:
    outcome = CliRunner().invoke(command, ["--hydrate=some", "/mnt"])
    assert outcome.exit_code == 2
    assert "none" in outcome.output
