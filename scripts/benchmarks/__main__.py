"""Chooses the benchmark: `scripts/bench hot`, `lag`, or `all` of them with their defaults."""

from __future__ import annotations

import click

from benchmarks import hot, lag


@click.group(invoke_without_command=True)
@click.pass_context
def bench(ctx: click.Context) -> None:
    """Measure litereplica on this machine."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(everything)


@bench.command("all")
@click.pass_context
def everything(ctx: click.Context) -> None:
    """Every benchmark with its defaults."""
    ctx.invoke(hot.command)
    ctx.invoke(lag.command)


bench.add_command(hot.command, "hot")
bench.add_command(lag.command, "lag")

if __name__ == "__main__":
    bench()
