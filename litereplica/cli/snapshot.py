"""`litereplica snapshot`: publish a snapshot of a replica's latest state now."""

from __future__ import annotations

from functools import partial

import click

from litereplica.cli import compact, output
from litereplica.cli.params import REPLICA_URL
from litereplica.compaction.compaction import snapshot
from litereplica.storage.url import redacted


@click.command()
@click.argument("replica_url", type=REPLICA_URL)
@output.json_option
def command(replica_url: str, as_json: bool) -> None:
    """Merge a replica's files into one that has the whole database at its latest state, now.

    A restore or a mount then begins with this file. It is made from the files of the replica alone; the database is
    not needed. Every file that is read is checked, and so is the result before it is published.
    With --json, a summary is printed: file (as in 'ltx --json', or null when there is a snapshot of this state
    already), inputs, seconds.

    \b
    Example:
      litereplica snapshot file:///srv/replica
      litereplica snapshot 's3://bucket/app.db?region=eu-west-1' --json
    """
    merge = partial(snapshot, progress=partial(output.progress, "Merging"))
    nothing = f"{redacted(replica_url)} has a snapshot of its latest state already"
    compact.run(replica_url, merge, as_json=as_json, nothing=nothing)
