"""`litereplica verify`: check a replica's files and that every point can be restored, or compare a database with it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from litereplica.cli import output
from litereplica.cli.config_file import config_option, no_expand_env_option
from litereplica.cli.on_store import run_on_store
from litereplica.cli.params import REPLICA_URL, format_size
from litereplica.cli.replica_of import ReplicaOf, find_replica
from litereplica.errors import ExitCode, LiteReplicaError, UsageError
from litereplica.format.names import format_txid
from litereplica.history.verify import Problem, Report, verify
from litereplica.printable import printable
from litereplica.storage.url import redacted, without_sqlite_scheme

MAX_PAGES = 100
"""Pages that --json lists."""
SHOWN_PAGES = 10
"""Pages that a message lists."""


class SourceDiffers(LiteReplicaError):
    """A database has other pages than its replica."""

    exit_code = ExitCode.DAMAGED


class UnsoundReplica(LiteReplicaError):
    """Some files of a replica are damaged, or some of its points cannot be restored."""

    exit_code = ExitCode.DAMAGED


@click.command()
@click.argument("source", metavar="DB|REPLICA_URL")
@click.argument("replica_url", metavar="[REPLICA_URL]", required=False, type=REPLICA_URL)
@click.option("--quick", is_flag=True, help="Read only headers and page indexes of large files.")
@config_option
@no_expand_env_option
@output.json_option
def command(
    source: str, replica_url: str | None, quick: bool, config_path: Path | None, no_expand_env: bool, as_json: bool
) -> None:
    """Check all files of a replica, and that every point can be restored; or compare a database with its replica.

    With a URL, every file is read and its CRC checked. The page indexes show whether the files for each point supply
    all pages of the database. A merged file must have the same content as its inputs, if these still exist. Files may
    be added and deleted meanwhile.

    \b
    Each problem is printed on one line: severity, file, problem, consequence.
      error    a file is damaged or wrong, or a point cannot be restored
      warning  restoring is not affected; later operations may be
      note     objects of other programs, and files deleted by retention

    The exit code is 5 if there is an error. With --json: files, size_bytes, points, newest_txid, errors, and problems
    (severity, file, what, means, and lost: the first and the last of the TXIDs that cannot be restored, or null).

    With the path of a database, each of its pages is compared with the replica's newest state, while the application
    and the writer go on. The replica is that of REPLICA_URL, or the one that is known for the database. All that the
    newest state needs is read, and its CRCs checked. The exit code is 5 if a page differs. With --json: equal, db_path,
    url, txid, page_size_bytes, pages, replica_pages, differing (their number), first_pages (at most 100), behind (true
    if transactions were not published, even after ten seconds).

    \b
    Example:
      litereplica verify file:///srv/replica
      litereplica verify 's3://bucket/app.db?region=eu-west-1' --quick --json
      litereplica verify app.db
      litereplica verify app.db file:///srv/replica --json
    """
    source = without_sqlite_scheme(source)
    if "://" not in source:
        if quick:
            raise UsageError("--quick is for a replica's files", hint="remove it, or name a replica instead of DB")
        compare_source(source, replica_url, config_path, expand_env=not no_expand_env, as_json=as_json)
        return
    if replica_url is not None:
        raise UsageError("only one URL can be verified", hint="name a database before the URL, or remove one of them")
    verify_replica(find_replica(source, config_path, expand_env=not no_expand_env), quick=quick, as_json=as_json)


def compare_source(source: str, url: str | None, config_path: Path | None, *, expand_env: bool, as_json: bool) -> None:
    """Compare a database with its replica. Raises `SourceDiffers`, and the errors of `compare` and `find_replica`."""
    from litereplica.writer.source_comparison import compare

    replica = find_replica(source if url is None else url, config_path, expand_env=expand_env)
    work = partial(compare, database=Path(source), progress=partial(output.progress, "Comparing"))
    found = run_on_store(replica, work)
    shown = redacted(replica.url)
    if as_json:
        output.print_json(
            {
                "equal": not found.differing,
                "db_path": source,
                "url": shown,
                "txid": format_txid(found.txid),
                "page_size_bytes": found.page_size,
                "pages": found.pages,
                "replica_pages": found.replica_pages,
                "differing": len(found.differing),
                "first_pages": list(found.differing[:MAX_PAGES]),
                "behind": found.is_behind,
            }
        )
    if not found.differing:
        output.note(f"{source} equals TXID {format_txid(found.txid)} of {shown}: {found.pages} pages")
        return
    first = ", ".join(map(str, found.differing[:SHOWN_PAGES]))
    more = ", …" if len(found.differing) > SHOWN_PAGES else ""
    size = f", which has {found.replica_pages} pages" if found.replica_pages != found.pages else ""
    behind = "transactions are not published yet: see 'litereplica status', or start its writer"
    raise SourceDiffers(
        f"{len(found.differing)} of {found.pages} pages of {source} differ from TXID {format_txid(found.txid)} of"
        f" {shown}{size}: {first}{more}",
        hint=behind if found.is_behind else "start its writer, or restart it with --verify-source",
    )


def verify_replica(replica: ReplicaOf, *, quick: bool, as_json: bool) -> None:
    """Verify the files of a replica, and print the problems. Raises `UnsoundReplica`, and the errors of `verify`."""
    work = partial(verify, quick=quick, progress=partial(output.progress, "Verifying"))
    report = run_on_store(replica, work)
    if as_json:
        output.print_json(
            {
                "files": report.files,
                "size_bytes": report.size,
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
