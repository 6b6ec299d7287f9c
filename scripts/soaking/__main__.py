"""The command behind scripts/soak."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import click

from soaking import judge, report, soak


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="How long to run.  [default: 30]")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="The same in hours.")
@click.option("--seed", type=int, help="Of everything that is random.  [default: a new one]")
@click.option("--rate", default=50.0, show_default=True, help="Transactions of the application a second.")
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the databases, the store and the logs lie; removed at the end.  [default: the temporary directory]",
)
@click.option(
    "--report", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the report to this file."
)
def main(
    *,
    minutes: float | None,
    hours: float | None,
    seed: int | None,
    rate: float,
    directory: Path | None,
    file: Path | None,
) -> None:
    """Run the soak test and print its report."""
    if minutes is not None and hours is not None:
        raise click.UsageError("--minutes and --hours exclude each other")
    plan = soak.Plan(
        minutes=hours * 60 if hours is not None else 30 if minutes is None else minutes,
        seed=random.randrange(1 << 31) if seed is None else seed,
        rate=rate,
        directory=directory or Path(tempfile.gettempdir()),
    )
    click.echo(f"seed {plan.seed}", err=True)
    run = soak.run(plan, lambda text: click.echo(text, err=True))
    verdict = judge.judge(run)
    text = report.markdown(run, verdict)
    click.echo(text)
    if file is not None:
        file.write_text(text)
    sys.exit(1 if verdict.problems else 0)


if __name__ == "__main__":
    main()
