"""`litereplica verify`: check the files of a replica, and that every point can be restored."""

from __future__ import annotations

from functools import partial

import click

from litereplica.cli import output
from litereplica.cli.on_store import run_on_store
from litereplica.cli.params import REPLICA_URL, format_size
from litereplica.cli.printable import printable
from litereplica.errors import ExitCode, LiteReplicaError
from litereplica.format.names import format_txid
from litereplica.history.verify import Problem, Report, verify


class UnsoundReplica(LiteReplicaError):
    """Some files of a replica are damaged, or some of its points cannot be restored."""

    exit_code = ExitCode.DAMAGED


@click.command()
@click.argument("replica_url", type=REPLICA_URL)
@click.option("--quick", is_flag=True, help="Read only headers and page indexes of large files.")
@output.json_option
def command(replica_url: str, quick: bool, as_json: bool) -> None:
    """Check all files of a replica, and that every point can be restored.

    Every file is read and its CRC checked. The page indexes show whether the files for each point supply all pages of
    the database. A merged file must have the same content as its inputs, if these still exist. Files may be added and
    deleted meanwhile.

    \b
    Each problem is printed on one line: severity, file, problem, consequence.
      error    a file is damaged or wrong, or a point cannot be restored
      warning  restoring is not affected; later operations may be
      note     objects of other programs, and files deleted by retention

    The exit code is 5 if there is an error. With --json: files, bytes, points, newest_txid, errors, and problems
    (severity, file, what, means, and lost: the first and the last of the TXIDs that cannot be restored, or null).

    \b
    Example:
      litereplica verify file:///srv/replica
      litereplica verify 's3://bucket/app.db?region=eu-west-1' --quick --json
    """
    work = partial(verify, quick=quick, progress=partial(output.progress, "Verifying"))
    report = run_on_store(replica_url, work)
    if as_json:
        output.print_json(
            {
                "files": report.files,
                "bytes": report.size,
                "points": report.points,
                "newest_txid": format_txid(report.newest),
                "errors": report.errors,
                "problems": [_record(problem) for problem in report.problems],
            }
        )
    else:
        for problem in report.problems:
            click.echo(printable(_line(problem)))
        output.note(f"{_checked(report)}: {_verdict(report)}")
    if report.errors:
        errors = "1 error" if report.errors == 1 else f"{report.errors} errors"
        hint = "restore a point that is not affected, or replicate the database to another URL"
        raise UnsoundReplica(f"the replica has {errors}", hint=hint)


def _record(problem: Problem) -> dict[str, object]:
    return {
        "severity": problem.severity.name.lower(),
        "file": problem.key or None,
        "what": problem.what,
        "means": problem.means,
        "lost": [format_txid(txid) for txid in problem.lost] if problem.lost else None,
    }


def _line(problem: Problem) -> str:
    """One line for a problem, in which unprintable characters of names are replaced."""
    line = f"{problem.severity.name.lower()}: {problem.key}: {problem.what}; {problem.means}"
    return "".join(char if char.isprintable() else "?" for char in line)


def _checked(report: Report) -> str:
    files = "1 file" if report.files == 1 else f"{report.files:,} files"
    points = "1 point" if report.points == 1 else f"{report.points:,} points"
    return f"checked {files}, {format_size(report.size)}, {points} up to TXID {format_txid(report.newest)}"


def _verdict(report: Report) -> str:
    if report.errors:
        return "there are errors"
    return "no problems" if not report.problems else "all points can be restored"
