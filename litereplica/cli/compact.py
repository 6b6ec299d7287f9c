"""`litereplica compact`: merge a replica's files into a higher level now. `run` is shared with `snapshot`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial

import click

from litereplica.cli import output
from litereplica.cli.ltx import record
from litereplica.cli.on_store import run_on_store
from litereplica.cli.params import format_size
from litereplica.cli.replica_of import ReplicaOf, replica_argument
from litereplica.compaction.compaction import Compacted, compact_level
from litereplica.compaction.levels import MAX_LEVEL
from litereplica.ltxstore.plan import require_files
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.url import redacted

Merge = Callable[[LTXStore], Awaitable[Compacted | None]]


@click.command()
@replica_argument
@click.option("--level", type=click.IntRange(1, MAX_LEVEL), required=True, help="Level of the merged file.")
@output.json_option
def command(replica: ReplicaOf, level: int, as_json: bool) -> None:
    """Merge the new files of level N-1 into one file of level N, now.

    The merged files are kept. Every file that is read is checked, and so is the result before it is published.
    With --json, a summary is printed: file (as in 'ltx --json', or null when there was nothing to merge), inputs,
    duration_ms.

    \b
    Example:
      litereplica compact file:///srv/replica --level 1
      litereplica compact 's3://bucket/app.db?region=eu-west-1' --level 2 --json
    """
    merge = partial(compact_level, level=level, progress=partial(output.progress, "Compacting"))
    run(replica, merge, as_json=as_json, nothing=f"nothing to merge into level {level} of {redacted(replica.url)}")


def run(replica: ReplicaOf, merge: Merge, *, as_json: bool, nothing: str) -> None:
    """Run `merge` on the replica and print the result, or `nothing` if there was nothing to merge."""

    async def work(store: LTXStore) -> Compacted | None:
        done = await merge(store)
        if done is None:
            require_files(await store.list_levels())
        return done

    start = time.monotonic()
    done = run_on_store(replica, work)
    seconds = time.monotonic() - start
    if as_json:
        file = None if done is None else record(done.info)
        inputs = 0 if done is None else len(done.compaction.inputs)
        output.print_json({"file": file, "inputs": inputs, "duration_ms": round(seconds * 1000)})
    elif done is None:
        output.note(nothing)
    else:
        count = len(done.compaction.inputs)
        what = f"{count} file{'' if count == 1 else 's'} to {done.info}, {format_size(done.info.size)}"
        output.note(f"merged {what}, in {seconds:.1f} s{', which existed already' if done.adopted else ''}")
