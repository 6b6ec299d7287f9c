"""Which files come next: the GET of the next L0 by its name, a LIST now and then, and finding the way after a loss.

The name of the next L0 file is known, so one GET both asks and delivers. What a GET cannot see is a gap: an L0 file
that was pruned before we came, whose transactions are in a compacted file by now. A listing shows it, and is
made when the GET finds nothing and the last listing is long ago. The newest L0 is never deleted, so a listing of
level 0 alone tells whether there is more.

A store that turns out to be *behind* us, or to hold another file under the name of the one that we are at, was
restored or made anew. A TXID alone is no proof of a history, so a file is applied only if it is proved to continue the
file that we are at:

    its frames follow those of our file in the same WAL
    our file is still in the store, with the same trailer: one more GET, which a restart of the WAL costs
    our file was pruned, and both are of one lineage (the node id in the header, random, which merges keep if their
    inputs have it): a lineage separates databases, not branches of one, which a bucket that is rolled back makes
    it is a snapshot, and replaces every page

A plan for our own position, which is read when files have vanished, is proved in the same ways, or by the time in the
header of its last file.

The next files of another replica do not fit our pages, so without proof nothing is applied file by file; when the store
has reached our position again, the whole plan is read as at the start and every page counts as changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from litereplica.concurrent import gather, in_order
from litereplica.errors import DamagedFile, GapError, NotFound, ReplicaError
from litereplica.format.ltx import Header
from litereplica.format.names import SNAPSHOT_LEVEL
from litereplica.ltxstore.catalog import PARALLEL_REQUESTS, Catalog, Chooser
from litereplica.ltxstore.limits import require_growth
from litereplica.ltxstore.plan import plan_newest, plan_restore, plan_steps
from litereplica.ltxstore.store import OpenedFile
from litereplica.replica.known_catalog import KnownCatalog
from litereplica.replica.lineage import goes_on, is_one_lineage, is_other_lineage
from litereplica.replica.request_costs import Purpose, RequestCosts
from litereplica.types import TXID, FileInfo

log = logging.getLogger(__name__)

LIST_INTERVAL_S = 30.0
"""Time between listings of level 0: L0 files live for 5 minutes after their compaction, and a LIST costs 12 GETs."""

FULL_LIST_INTERVAL_S = 300.0
"""Time between listings of all levels while level 0 shows nothing new: ten LISTs, for stores that lost their L0."""

REBASE_INTERVAL_S = 300.0
"""Time between looks for newer files to read from: the smallest files live for that long after their compaction."""

LASTING_LEVELS = (3, SNAPSHOT_LEVEL)
"""Levels whose files live for hours: the last one that compaction makes, and snapshots."""

MAX_FILES_PER_POLL = 256
"""L0 files of one poll: what comes back after a pause is applied in steps, and the next one follows at once."""

MAX_BYTES_PER_POLL = 16 * 1024 * 1024
"""Bytes of their pages: half of what a mount keeps in memory, so that they are still there when they are applied."""


@dataclass(frozen=True, slots=True, eq=False)
class FoundFiles:
    """Files to apply, oldest first. `whole`: they are a plan from the start, and everything counts as changed."""

    files: list[OpenedFile]
    whole: bool = False


@dataclass(frozen=True, slots=True)
class _Here:
    """The file that made a position, by which its successor is recognised. `checksum` is that of its trailer."""

    info: FileInfo
    header: Header
    checksum: int


@dataclass(slots=True, eq=False)
class _Following:
    """The L0 files after a position as they arrive, oldest first, and the damage by which the next one failed."""

    files: list[OpenedFile] = field(default_factory=list)
    damage: DamagedFile | None = None
    size: int = 0

    @property
    def is_full(self) -> bool:
        """True if these are as many as one poll takes."""
        return len(self.files) >= MAX_FILES_PER_POLL or self.size >= MAX_BYTES_PER_POLL

    async def take(self, found: OpenedFile | DamagedFile | None) -> bool:
        """Add the next one. Returns False if it is the last."""
        if not isinstance(found, OpenedFile):
            self.damage = found
            return False
        self.files.append(found)
        self.size += len(found.pages or ()) * found.header.page_size
        return not self.is_full


class NextFiles:
    """Finds the files after a TXID. It keeps no position: callers pass theirs.

    `newest_txid` is the highest TXID that the last listing or file showed; `is_behind` is True if more files were
    waiting than one poll takes. `catalog` is the store's files; the first ones are found by one of the kind
    `first_catalog`.
    """

    def __init__(
        self,
        costs: RequestCosts,
        *,
        clock: Callable[[], float],
        list_interval_s: float,
        first_catalog: type[Catalog] = Catalog,
    ) -> None:
        self.newest_txid: TXID = 0
        self.is_behind = False
        self._store = costs.store(Purpose.POLL)
        self._lists = costs.store(Purpose.LIST)
        self.catalog = KnownCatalog(self._lists)
        self._first_catalog = first_catalog(costs.store(Purpose.OPEN), damaged=self.catalog.damaged)
        self._clock = clock
        self._list_interval_s = list_interval_s
        self._listed_at = self._fully_listed_at = clock()
        self._rebase_checked_at = clock()
        self._ground: frozenset[str] = frozenset()
        self._tip: FileInfo | None = None
        self._ahead: Sequence[FileInfo] = ()  # L0 files beyond the position at the last listing
        self._here: dict[TXID, _Here] = {}  # the files that end at the position and at those that may follow
        self._diverged = False
        self._unproven = False  # it diverged for want of proof: the file at the position has gone

    async def first_files(self, at: TXID | None = None) -> list[OpenedFile]:
        """The files that make the newest database that can be reached, or that of a TXID.

        Raises `NoReplica`, `GapError`.
        """

        def choose(files: Sequence[FileInfo]) -> list[FileInfo]:
            self._note(files)
            plan = plan_newest(files) if at is None else plan_restore(files, target=at)
            self._check_tip(files, plan[-1].max_txid)
            return plan

        files = await self._first_catalog.open(choose, only_needed=True)
        self._remember(files)
        return files

    async def next_files(self, position: TXID) -> FoundFiles | None:
        """What leads on from a position: one GET when there is nothing, and a LIST when one is due."""
        damage = None
        was_behind, self.is_behind = self.is_behind, False
        self._here = {txid: here for txid, here in self._here.items() if txid >= position}
        if not self._diverged:
            following = await self._next_l0s(position, least_width=PARALLEL_REQUESTS if was_behind else 1)
            files, damage = following.files, following.damage
            if files and await self._is_our_successor(position, files[0]):
                files, damage = self._with_all_pages(position, files, damage)
            elif files:
                self._diverge(f"{self._store.key(files[0].info)} does not follow the file that we have")
                files, damage, self._listed_at = [], None, -self._list_interval_s
            if files:
                for file in files:
                    self.catalog.trust(file.info)
                self._remember(files)
                self._tip = files[-1].info
                self.newest_txid = self._tip.max_txid
                self.is_behind = following.is_full and damage is None
                return FoundFiles(files)
        news = damage is not None and self.catalog.avoid(damage)
        found = None
        if news or self._clock() - self._listed_at >= self._list_interval_s:
            found = await self._listed(position)
        if found is None and damage is not None:
            raise damage
        return found

    async def files_at(self, position: TXID) -> FoundFiles:
        """A new plan for a position, or for a later one when no file ends there any more.

        Raises `GapError` when the files do not reach it.
        """

        def choose(files: Sequence[FileInfo]) -> list[FileInfo]:
            self._note(files)
            try:
                return plan_restore(files, target=position)
            except GapError:
                return self._reaching(position, plan_newest(files))

        files = await self.catalog.open(self._newest_plan(position) if self._diverged else choose)
        self._listed_at = -self._list_interval_s  # there may be a gap before the next L0, too
        if self._diverged or not await self._is_our_history(position, files[-1]):
            return self._found_whole(files)
        self._remember(files)
        return FoundFiles(files)

    async def is_left_behind(self, in_use: Callable[[], Collection[FileInfo]], position: TXID) -> bool:
        """Are there newer files to read from than those `in_use`, which will be deleted? Two LISTs when one is due."""
        if self._clock() - self._rebase_checked_at < REBASE_INTERVAL_S or self._diverged:
            return False
        self._rebase_checked_at = self._clock()
        listed = await gather([partial(self._lists.list_level, level) for level in LASTING_LEVELS])
        files = [info for level in listed for info in level if info.max_txid <= position]
        ground = frozenset(map(str, files))
        if ground == self._ground:
            return False
        self._ground = ground
        return left_behind(in_use(), files)

    async def _next_l0s(self, position: TXID, *, least_width: int) -> _Following:
        """The L0 files that follow, without a gap; more and more requests at a time while there are any."""
        following = _Following()
        jobs = (partial(self._next_l0, txid) for txid in count(position + 1))
        await in_order(
            jobs,
            following.take,
            width=lambda: min(max(least_width, len(following.files) // 2), PARALLEL_REQUESTS),
        )
        return following

    def _commit_at(self, position: TXID) -> int | None:
        """Return the number of pages of the database at `position`; None if it is unknown."""
        here = self._here.get(position)
        return None if here is None else here.header.commit

    def _with_all_pages(
        self, position: TXID, files: list[OpenedFile], damage: DamagedFile | None
    ) -> tuple[list[OpenedFile], DamagedFile | None]:
        """Return the files before the first that lacks pages by which it grows the database, and the damage after them.

        `files` follow `position`; `damage` is what comes after them.
        """
        commit = self._commit_at(position)
        for i, file in enumerate(files):
            try:
                if commit is not None:
                    with self._store.blame(file.info):
                        require_growth(file.header, file.index, commit=commit)
            except DamagedFile as exc:
                return files[:i], exc
            commit = file.header.commit
        return files, damage

    async def _is_our_successor(self, position: TXID, following: OpenedFile) -> bool:
        """True if this file is proved to continue the one that we have of `position`.

        If our file has gone from the store and the lineage is not the same there is no proof, and the whole plan is
        read anew.
        """
        here = self._here.get(position)
        if here is None:
            self._unproven = True
            return False
        if goes_on(here.header, following.header):
            return True
        try:
            return await self._store.read_checksum(here.info) == here.checksum
        except NotFound:
            self._unproven = not is_one_lineage(here.header, following.header)
            return not self._unproven

    async def _is_our_history(self, position: TXID, last: OpenedFile) -> bool:
        """True if a plan that ends in `last` is proved to be of the history that we have: its pages may replace ours.

        Merges keep the time of their last input, to the millisecond, so it tells who made a position.
        """
        here = self._here.get(position)
        if here is None or last.header.max_txid != position or is_other_lineage(here.header, last.header):
            return await self._is_our_successor(position, last)
        same = (here.header.timestamp_ms, here.header.commit) == (last.header.timestamp_ms, last.header.commit)
        return same or await self._is_our_successor(position, last)

    def _remember(self, files: Sequence[OpenedFile]) -> None:
        """`files` lead to the position or on from it; a caller that fails to apply them stays where it is."""
        for file in files:
            self._here[file.header.max_txid] = _Here(file.info, file.header, file.file_checksum)

    async def _next_l0(self, txid: TXID) -> OpenedFile | DamagedFile | None:
        try:
            return await self._store.next_l0(txid)
        except NotFound:
            return None
        except DamagedFile as exc:
            return exc

    async def _listed(self, position: TXID) -> FoundFiles | None:
        """What a listing shows: that of level 0, and those of all levels when there is reason."""
        self._listed_at = self._clock()
        level0 = await self._lists.list_level(0, after=position - 1)
        self._note(level0)
        self._ahead = [info for info in level0 if info.min_txid > position]
        self._check_tip(level0, position)
        quiet = bool(level0) and self.newest_txid <= position and not self._diverged
        if quiet and self._clock() - self._fully_listed_at < FULL_LIST_INTERVAL_S:
            return None
        self._fully_listed_at = self._clock()
        if not self._diverged:
            commit = self._commit_at(position)
            files = await self.catalog.open(partial(self._steps, position), after=position - 1, onto=commit)
            if files and files[0].header.min_txid > 1 and not await self._is_our_successor(position, files[0]):
                self._diverge(f"{self._store.key(files[0].info)} does not follow the file that we have")
            elif files or not self._diverged:
                self._remember(files)
                if len(files) == MAX_FILES_PER_POLL:
                    self.is_behind, self._listed_at = True, -self._list_interval_s
                return FoundFiles(files) if files else None
        try:
            return self._found_whole(await self.catalog.open(self._newest_plan(position)))
        except ReplicaError:
            return None

    def _steps(self, position: TXID, files: Sequence[FileInfo]) -> list[FileInfo]:
        """The files that lead on. Snapshots only when nothing else leads as far: they replace every page."""
        self._note(files)
        if not any(info.max_txid >= position for info in files):
            self._diverge(f"the newest TXID of {self._store.url} is below ours, {position:016x}")
            return []
        every = plan_steps(files, after=position)
        lean = plan_steps((info for info in files if info.min_txid > 1), after=position)
        steps = lean if lean and lean[-1].max_txid == every[-1].max_txid else every
        return steps[:MAX_FILES_PER_POLL]

    def _newest_plan(self, position: TXID) -> Chooser:
        def choose(files: Sequence[FileInfo]) -> list[FileInfo]:
            self._note(files)
            return self._reaching(position, plan_newest(files))

        return choose

    def _reaching(self, position: TXID, plan: list[FileInfo]) -> list[FileInfo]:
        if plan[-1].max_txid < position:
            raise GapError(
                f"the files of {self._store.url} lead to TXID {plan[-1].max_txid:016x}, we are at {position:016x}",
                have=plan[-1].max_txid,
                want=position,
                hint="mount the replica again if it was restored to an older state",
            )
        return plan

    def _found_whole(self, files: list[OpenedFile]) -> FoundFiles:
        level = logging.INFO if self._unproven else logging.WARNING
        self._unproven = False
        log.log(level, "%s: reading the whole database anew at TXID %016x", self._store.url, files[-1].header.max_txid)
        self._diverged = False
        self._tip = None
        self._here = {}
        self._remember(files)
        return FoundFiles(files, whole=True)

    def bytes_beyond(self, position: TXID) -> int:
        """Return the bytes of the L0 files after a TXID, as far as the last listing showed them."""
        return sum(info.size for info in self._ahead if info.min_txid > position)

    def _note(self, files: Sequence[FileInfo]) -> None:
        self.newest_txid = max((info.max_txid for info in files), default=self.newest_txid)

    def _check_tip(self, files: Sequence[FileInfo], position: TXID) -> None:
        """Is the L0 file of our position still the one that we knew?"""
        tip = next((info for info in files if info.level == 0 and info.max_txid == position), None)
        if tip is None:
            return
        if self._tip is not None and self._tip.max_txid == position and self._tip.size != tip.size:
            self._diverge(f"{self._store.key(tip)} is not the file that it was")
        self._tip = tip

    def _diverge(self, reason: str) -> None:
        if self._unproven:
            log.info("%s, and that one has gone: reading the whole plan anew", reason)
        elif not self._diverged:
            log.warning("%s: the replica was replaced or restored; serving what we have until it is ahead", reason)
        self._diverged = True


def left_behind(in_use: Iterable[FileInfo], lasting: Collection[FileInfo]) -> bool:
    """Does retention delete one of these files before the newest of the lasting ones?

    Everything that ends before the newest snapshot goes when that one has come of age, and the small files go soon
    after their transactions are in a lasting one.
    """
    snapshot = max((info.max_txid for info in lasting if info.level == SNAPSHOT_LEVEL), default=0)
    compacted = max((info.max_txid for info in lasting), default=0)
    return any(
        info.max_txid < snapshot or (info.level not in LASTING_LEVELS and info.max_txid <= compacted) for info in in_use
    )
