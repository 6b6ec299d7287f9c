"""Options of commands and sizes: what is read, what is refused with which advice, and that writing reads back."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from litereplica.cli.params import DURATION, REPLICA_URL, SIZE, format_size, parse_size
from litereplica.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("100B", 100),
        ("500KB", 500_000),
        ("1.001KB", 1001),
        ("4KiB", 4096),
        ("64MiB", 67_108_864),
        ("64mib", 67_108_864),
        ("64 MiB", 67_108_864),
        ("64MB", 64_000_000),
        ("1GiB", 1_073_741_824),
        ("1.5GiB", 1_610_612_736),
        ("2TB", 2_000_000_000_000),
        ("1TiB", 1_099_511_627_776),
    ],
)
def test_size_is_read_as_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("64", "write 64B or 64MiB"),
        ("", "write 64MiB, 1GiB or 500KB"),
        ("big", "write 64MiB, 1GiB or 500KB"),
        ("64M", "write 64MiB, 1GiB or 500KB"),
        ("-1B", "write 64MiB, 1GiB or 500KB"),
        ("1PiB", "write 64MiB, 1GiB or 500KB"),
        ("1MiB1KiB", "write 64MiB, 1GiB or 500KB"),
    ],
)
def test_what_is_no_size_is_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert caught.value.hint == hint


@given(st.integers(min_value=0, max_value=2**50))
def test_a_written_size_reads_back_to_a_twentieth(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= size / 20


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1023, "1023B"), (1024, "1KiB"), (1536, "1.5KiB"), (67_108_864, "64MiB"), (2**30, "1GiB")],
)
def test_size_is_written_in_binary_units(size: int, text: str) -> None:
    assert format_size(size) == text


@click.command()
@click.argument("url", type=REPLICA_URL)
@click.option("--interval", type=DURATION, default="1s", show_default=True)
@click.option("--size", type=SIZE, default="64MiB", show_default=True)
def sample(url: str, interval: float, size: int) -> None:
    """A command with one parameter of each kind."""
    click.echo(f"{url} {interval} {size}")


def test_options_have_typed_values_and_readable_defaults() -> None:
    result = CliRunner().invoke(sample, ["file:///srv/replica", "--interval", "500ms"])
    assert (result.exit_code, result.output) == (0, "file:///srv/replica 0.5 67108864\n")
    help_text = CliRunner().invoke(sample, ["--help"]).output
    assert "[default: 1s]" in help_text
    assert "[default: 64MiB]" in help_text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["file:///r", "--interval", "5"], "Invalid value for '--interval': '5' is not a duration: write 5s or 5ms"),
        (["file:///r", "--size", "5"], "Invalid value for '--size': '5' is not a size: write 5B or 5MiB"),
    ],
)
def test_refused_value_names_its_option(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(sample, arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("url", ["/srv/replica", "ftp://host/path", "s3://"])
def test_refused_url_is_the_error_of_the_url_itself(url: str) -> None:
    result = CliRunner().invoke(sample, [url])
    assert isinstance(result.exception, UsageError)
    assert result.exception.hint
