"""Beginning with a database that is open: how far its replica is, and publishing what the database holds already."""

from __future__ import annotations

from litereplica.errors import NotFound
from litereplica.ltxstore.store import LTXStore
from litereplica.types import FileInfo
from litereplica.writer.database.parked import Rest
from litereplica.writer.database.published import Published
from litereplica.writer.database.sqlite_database import Source
from litereplica.writer.database.state_directory import StateDirectory
from litereplica.writer.database.wal_follower import WalTail
from litereplica.writer.publish.lease_keeper import Tenure
from litereplica.writer.publish.outage_log import OutageLog
from litereplica.writer.publish.page_checksums import PageChecksums
from litereplica.writer.publish.publisher import Prepared, Publisher
from litereplica.writer.resume import resume_point
from litereplica.writer.resume.replica_pages import carry_on, known_pages
from litereplica.writer.resume.resume_point import Start


class Beginning:
    """Of one database. `left` is how this process left it, if nobody has been at work on it since."""

    def __init__(
        self,
        store: LTXStore,
        source: Source,
        tail: WalTail,
        publisher: Publisher,
        *,
        state: StateDirectory,
        sums: PageChecksums,
        tenure: Tenure,
        watch: OutageLog,
        left: Rest | None,
    ) -> None:
        self._store = store
        self._source = source
        self._tail = tail
        self._publisher = publisher
        self._state = state
        self._sums = sums
        self._tenure = tenure
        self._watch = watch
        self._left = left

    async def start(self) -> tuple[Start, resume_point.Hold]:
        """For the first time: find out what is published, once nobody else may publish."""
        with self._watch.waiting():
            await self._tenure.begin()
            remote = await self._remote_as_left() or await resume_point.read_remote(self._store)
        hold = await self._source.run(lambda: resume_point.take_hold(self._source, self._tail))
        mark = self._state.read_mark()
        with self._watch.waiting():
            start, self._publisher.last = await resume_point.decide(
                self._store, self._source, self._tail, hold=hold, remote=remote, mark=mark,
                same_file=not self._sums.tells_of_another_file,
            )  # fmt: skip
            if remote.file is not None and start is not Start.DIFFERENCE:
                await carry_on(
                    self._store, self._source, self._sums,
                    newest=remote.file.info, last=self._publisher.last.version, watch=self._watch,
                )  # fmt: skip
        if start is Start.DIFFERENCE and self._tenure.has_taken_over():
            await resume_point.require_continuation(
                self._store, self._source, self._publisher, hold=hold, sums=self._sums, watch=self._watch
            )
        return start, hold

    async def _remote_as_left(self) -> resume_point.Remote | None:
        """The replica as we left it, if nobody can have published to it since, as far as we are told."""
        left, self._left = self._left, None
        if left is None or left.last is None or left.interruptions != self._tenure.interruptions():
            return None
        try:
            file = await self._store.open(FileInfo(0, left.txid, left.txid, 0))
        except NotFound:
            return None
        found = Published.of(file.header, file.file_checksum)
        return resume_point.Remote(left.txid, file) if found == left.last else None

    async def publish_content(self, commit: int | None) -> Prepared | None:
        """What the database holds, or what of it differs from the replica; `commit` as in `WalTail.whole`."""
        if self._publisher.last.txid == 0:
            return await self._publisher.publish_whole(commit=commit)
        last = self._publisher.last.version
        known = await known_pages(self._store, self._source, self._sums, last=last, watch=self._watch)
        if known is None:
            return await self._publisher.publish_whole(commit=commit)
        return await self._publisher.publish_difference(known, commit=commit)
