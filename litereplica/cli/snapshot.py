"""`litereplica snapshot`: publish a snapshot of a replica's latest state now."""

from __future__ import annotations

from functools import partial

import click

from litereplica.cli import compact, output
from litereplica.cli.replica_of import ReplicaOf, replica_argument
from litereplica.compaction.compaction import snapshot
from litereplica.storage.url import redacted


@click.command()
@replica_argument
@output.json_option
def command(replica: ReplicaOf, as_json: bool) -> None:
    """Merge a replica's files into one file that contains the whole database in its latest state, now.

    A restore or a mount then starts from this file. It is made from the files of the replica alone, without the
    database; 'replicate --once --force-snapshot' makes one from the database. Every file that is read is checked, and
    so is the result before it is published.
    With --json, a summary is printed: file (as in 'ltx --json', or null if this state has a snapshot already), inputs,
    duration_ms.

    \b
    Example:
      litereplica snapshot file:///srv/replica
      litereplica snapshot 's3://bucket/app.db?region=eu-west-1' --json
    """
    merge = partial(snapshot, progress=partial(output.progress, "Merging"))
    nothing = f"{redacted(replica.url)} already has a snapshot of its latest state"
    compact.run(replica, merge, as_json=as_json, nothing=nothing)
