"""The command behind scripts/bench: one subcommand for each benchmark, and `all` of them in one session."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

from benchmarks import (
    backlog,
    cold,
    commands,
    compact,
    cost,
    hydration,
    lag,
    report,
    restore,
    uncached,
    warm,
    writer,
    writer_idle,
)
from benchmarks.results import Result
from benchmarks.setting import FULL, QUICK, Setting, open_setting

Benchmark = Callable[[Setting], tuple[Result, ...]]

BENCHMARKS: Mapping[str, Benchmark] = {
    "cold-first-query": cold.first_query,
    "commands": commands.commands,
    "further-connections": cold.further_connections,
    "cold-lookups": cold.random_lookups,
    "cold-scan": cold.scan,
    "hydration": hydration.hydration,
    "warm": warm.warm_queries,
    "uncached-reads": uncached.uncached_reads,
    "lag": lag.lag,
    "idle": cost.idle,
    "load": cost.under_load,
    "memory": warm.memory,
    "writer": writer.writer,
    "writer-idle": writer_idle.writer_idle,
    "restore": restore.restore,
    "compact": compact.compact,
    "backlog": backlog.backlog,
    "listing": backlog.listing,
}
DOCS = Path(__file__).parents[2] / "docs"
ROUND_TRIP_MS = 10.0
"""Between machines of one region it is less than that, between regions more."""


@click.group(invoke_without_command=True)
@click.pass_context
def bench(ctx: click.Context) -> None:
    """Measure litereplica on this machine against Litestream, its VFS and the local file, in one run."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(everything)


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every subcommand."""
    command = click.option("--quick", is_flag=True, help="A small database and few repeats: does it all work?")(command)
    command = click.option("--repeats", type=click.IntRange(1), help="Repeats for each subject, at most.")(command)
    return click.option(
        "--round-trip-ms", default=ROUND_TRIP_MS, show_default=True, help="Latency added between readers and SeaweedFS."
    )(command)


@bench.command("all")
@common_options
@click.option(
    "--write/--no-write", default=None, help="Write docs/BENCHMARKS.md and its plots.  [default: unless --quick]"
)
def everything(
    quick: bool = False,
    repeats: int | None = None,
    round_trip_ms: float = ROUND_TRIP_MS,
    write: bool | None = None,
) -> None:
    """Every benchmark; writes docs/BENCHMARKS.md, anew after each of them."""
    command = "scripts/bench all" + (" --quick --write" if quick else "")
    command += "" if repeats is None else f" --repeats {repeats}"
    with _setting(quick, repeats, round_trip_ms) as setting:
        run = report.this_run(command, _scale(setting))
        measured, failed = [], []
        for name, benchmark in BENCHMARKS.items():
            # one that fails must not cost what the others have measured
            try:
                measured.append(report.Measured(f"scripts/bench {name}", _measure(setting, name, benchmark)))
                if write if write is not None else not quick:
                    click.echo(f"written: {report.write(run, measured, DOCS)}", err=True)
            except Exception:
                traceback.print_exc()
                failed.append(name)
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}")


def _subcommand(name: str, benchmark: Benchmark) -> click.Command:
    @common_options
    def run(quick: bool, repeats: int | None, round_trip_ms: float) -> None:
        with _setting(quick, repeats, round_trip_ms) as setting:
            _measure(setting, name, benchmark)

    return click.command(name, help=benchmark.__doc__)(run)


def _measure(setting: Setting, name: str, benchmark: Benchmark) -> tuple[Result, ...]:
    started = time.perf_counter()
    results = benchmark(setting)
    for result in results:
        click.echo(f"## {result.title}\n\n{report.tables(result)}\n")
    click.echo(f"{name}: {time.perf_counter() - started:.0f} s\n", err=True)
    return results


@contextmanager
def _setting(quick: bool, repeats: int | None, round_trip_ms: float) -> Iterator[Setting]:
    scale = QUICK if quick else FULL
    with open_setting(scale.repeated(repeats) if repeats else scale, round_trip_ms=round_trip_ms) as setting:
        yield setting


def _scale(setting: Setting) -> str:
    megabytes = setting.database.stat().st_size / 1e6
    return f"{setting.scale.rows:,} rows, {megabytes:.0f} MB; {setting.round_trip_ms:g} ms of added round trip"


for _name, _benchmark in BENCHMARKS.items():
    bench.add_command(_subcommand(_name, _benchmark))

if __name__ == "__main__":
    bench()
