"""The table of metrics: names, labels, and how each is read from the document of `GET /status`.

Names that begin with `litestream_` are Litestream's (0.5.17), with its labels. docs/OPERATIONS.md has the same table,
which a test compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from litereplica.times import parse_time_ms

Record = Mapping[str, Any]
Sample = tuple[tuple[str, ...], float]
"""The values of the labels, and the value."""

WRITER, MOUNT, BOTH = "writer", "mount", "both"
COUNTER, GAUGE, UNTYPED = "counter", "gauge", "untyped"


class FileSizes(NamedTuple):
    """Sizes in bytes of a database file and of its WAL."""

    database: int
    wal: int


@dataclass(frozen=True, slots=True)
class Scrape:
    """What metrics are made from: the document, the sizes of files by `db_path`, and the time."""

    document: Record
    sizes: Mapping[str, FileSizes]
    now_ms: int

    @property
    def databases(self) -> list[Record]:
        """The records of databases that have not ended."""
        return [each for each in self.document["databases"] if each["state"] != "gone"]


@dataclass(frozen=True, slots=True)
class Family:
    """A metric. `of` is the kind of daemon that has it; `read` returns its samples."""

    name: str
    kind: str
    of: str
    labels: tuple[str, ...]
    help: str
    read: Callable[[Scrape], Iterable[Sample]]


# --- how values are read ---------------------------------------------------------------------------------------------


def _each(key: str, *, scale: float = 1.0) -> Callable[[Scrape], Iterator[Sample]]:
    """Read a number of each record that has it."""

    def read(scrape: Scrape) -> Iterator[Sample]:
        for record in scrape.databases:
            if record.get(key) is not None:
                yield (record["db_path"],), record[key] * scale

    return read


def _txid(key: str) -> Callable[[Scrape], Iterator[Sample]]:
    def read(scrape: Scrape) -> Iterator[Sample]:
        for record in scrape.databases:
            if record.get(key) is not None:
                yield (record["db_path"],), int(record[key], 16)

    return read


def _time(*keys: str, below: str = "") -> Callable[[Scrape], Iterator[Sample]]:
    """Read the first of some times of each record, in seconds since the epoch."""

    def read(scrape: Scrape) -> Iterator[Sample]:
        for record in scrape.databases:
            fields = (record.get(below) or {}) if below else record
            text = next((fields[key] for key in keys if fields.get(key)), None)
            if text is not None:
                yield (record["db_path"],), parse_time_ms(text) / 1000

    return read


def _below(part: str, key: str) -> Callable[[Scrape], Iterator[Sample]]:
    """Read a number of a part of each record that has it."""

    def read(scrape: Scrape) -> Iterator[Sample]:
        for record in scrape.databases:
            if record.get(part):
                yield (record["db_path"],), record[part][key]

    return read


def _count(key: str) -> Callable[[Scrape], Iterator[Sample]]:
    """Count the elements of a list of each record that has it."""

    def read(scrape: Scrape) -> Iterator[Sample]:
        for record in scrape.databases:
            if key in record:
                yield (record["db_path"],), len(record[key])

    return read


def _state(scrape: Scrape) -> Iterator[Sample]:
    for record in scrape.databases:
        yield (record["db_path"], record["state"]), 1


def _states(scrape: Scrape) -> Iterator[Sample]:
    for state, count in sorted(Counter(record["state"] for record in scrape.databases).items()):
        yield (state,), count


def _error(scrape: Scrape) -> Iterator[Sample]:
    for record in scrape.databases:
        yield (record["db_path"],), bool(record["error"])


def _oldest_reader(scrape: Scrape) -> Iterator[Sample]:
    for record in scrape.databases:
        if "readers" in record:
            since = [parse_time_ms(each["since"]) for each in record["readers"]]
            yield (record["db_path"],), max(0, scrape.now_ms - min(since)) / 1000 if since else 0


def _cached(scrape: Scrape) -> Iterator[Sample]:
    for record in scrape.databases:
        for key, value in record.get("cached_reads", {}).items():
            yield (record["db_path"], key.removesuffix("_pages")), value


def _requests(key: str) -> Callable[[Scrape], Iterator[Sample]]:
    """Sum up requests by URL and purpose; a writer has one purpose."""

    def read(scrape: Scrape) -> Iterator[Sample]:
        for replica in scrape.document.get("replicas", ()):
            yield (replica["url"], "replicate"), sum(each[key] for each in replica["requests"])
        for record in scrape.databases:
            for each in record.get("requests", ()):
                yield (record["url"], each["purpose"]), each.get(key, 0)

    return read


def _cost(scrape: Scrape) -> Iterator[Sample]:
    for replica in scrape.document.get("replicas", ()):
        yield (replica["url"], "replicate"), replica["usd"] or 0
    for record in scrape.databases:
        for each in record.get("requests", ()):
            yield (record["url"], each["purpose"]), each["usd"] or 0


LITESTREAM_OPERATIONS = {"get": "GET", "head": "HEAD", "list": "LIST", "put": "PUT", "delete": "DELETE"}


def _operations(
    values: Callable[[Record], Iterable[Sample]],
) -> Callable[[Scrape], list[Sample]]:
    """Sum up requests by type of replica and Litestream's name of the operation, and further labels of `values`."""

    def read(scrape: Scrape) -> list[Sample]:
        sums: Counter[tuple[str, ...]] = Counter()
        for replica in scrape.document.get("replicas", ()):
            kind = replica["url"].partition(":")[0]
            for each in replica["requests"]:
                operation = LITESTREAM_OPERATIONS[each["operation"].partition("_")[0]]
                for labels, value in values(each):
                    sums[kind, operation, *labels] += value  # type: ignore[assignment] # a float that counts
        return sorted(sums.items())

    return read


def _errors_by_code(request: Record) -> list[Sample]:
    return [((code,), count) for code, count in request["error_codes"].items()]


def _size(which: Callable[[FileSizes], int]) -> Callable[[Scrape], Iterator[Sample]]:
    def read(scrape: Scrape) -> Iterator[Sample]:
        for path, sizes in scrape.sizes.items():
            yield (path,), which(sizes)

    return read


def _checkpoints(scrape: Scrape) -> Iterator[Sample]:
    for record in scrape.databases:
        if "checkpoints" in record:
            yield (record["db_path"], "PASSIVE"), record["checkpoints"]


def _about(scrape: Scrape) -> Iterator[Sample]:
    yield (scrape.document["kind"], scrape.document["version"]), 1


def _started(scrape: Scrape) -> Iterator[Sample]:
    yield (), parse_time_ms(scrape.document["started_at"]) / 1000


# --- the table -------------------------------------------------------------------------------------------------------

_DB, _REQUEST, _OPERATION = ("db",), ("url", "purpose"), ("replica_type", "operation")

FAMILIES: Sequence[Family] = (
    Family("litereplica_info", GAUGE, BOTH, ("kind", "version"), "Kind and version of the daemon; 1.", _about),
    Family("litereplica_start_time_seconds", GAUGE, BOTH, (), "When the daemon started.", _started),
    Family("litereplica_databases", GAUGE, BOTH, ("state",), "Databases in each state.", _states),
    Family("litereplica_state", GAUGE, BOTH, ("db", "state"), "The state of the database; 1.", _state),
    Family("litereplica_error", GAUGE, BOTH, _DB, "1 while there is an error: /health says which.", _error),
    Family("litereplica_lag_seconds", GAUGE, BOTH, _DB, "Time since all was published, or all known was applied; 0"
           " if all is well.", _each("lag_ms", scale=0.001)),
    Family("litereplica_behind_bytes", GAUGE, BOTH, _DB, "Bytes that are unpublished, or known and not applied.",
           lambda scrape: [*_each("unpublished_bytes")(scrape), *_each("behind_bytes")(scrape)]),
    Family("litereplica_txid", GAUGE, BOTH, _DB, "TXID published, or seen by new transactions.", _txid("txid")),
    Family("litereplica_position_timestamp_seconds", GAUGE, BOTH, _DB, "Time of the last file that this process"
           " published, or of the transaction at the position.", _time("published_at", "timestamp")),
    Family("litereplica_wal_frames", GAUGE, BOTH, _DB, "Frames of the WAL that are not in the database file; of a"
           " mount those of the virtual WAL.", _each("wal_frames")),
    Family("litereplica_requests_total", COUNTER, BOTH, _REQUEST, "Requests to the store.", _requests("requests")),
    Family("litereplica_request_errors_total", COUNTER, BOTH, _REQUEST, "Requests that failed; that there is"
           " no such object, or a condition is not met, is an answer.", _requests("errors")),
    Family("litereplica_received_bytes_total", COUNTER, BOTH, _REQUEST, "Bytes received from the store.",
           _requests("received_bytes")),
    Family("litereplica_sent_bytes_total", COUNTER, BOTH, _REQUEST, "Bytes sent to the store.",
           _requests("sent_bytes")),
    Family("litereplica_cost_usd_total", COUNTER, BOTH, _REQUEST, "Estimated price of the requests by S3's list; 0 for"
           " stores without prices.", _cost),
    Family("litereplica_published_files_total", COUNTER, WRITER, _DB, "LTX files published.", _each("published_files")),
    Family("litereplica_published_pages_total", COUNTER, WRITER, _DB, "Pages published.", _each("published_pages")),
    Family("litereplica_published_bytes_total", COUNTER, WRITER, _DB, "Bytes of LTX files published.",
           _each("published_bytes")),
    Family("litereplica_lease_generation", GAUGE, WRITER, _DB, "Number of the lease that is held.",
           _below("lease", "generation")),
    Family("litereplica_lease_expires_timestamp_seconds", GAUGE, WRITER, _DB, "When the lease that is held expires.",
           _time("expires_at", below="lease")),
    Family("litereplica_newest_txid", GAUGE, MOUNT, _DB, "The newest TXID known.", _txid("newest_txid")),
    Family("litereplica_news_age_seconds", GAUGE, MOUNT, _DB, "Time since the last poll that succeeded.",
           _each("news_age_ms", scale=0.001)),
    Family("litereplica_polls_total", COUNTER, MOUNT, _DB, "Polls.", _each("polls")),
    Family("litereplica_readers", GAUGE, MOUNT, _DB, "Read transactions that are open.", _count("readers")),
    Family("litereplica_oldest_reader_seconds", GAUGE, MOUNT, _DB, "Age of the oldest open read transaction, which pins"
           " a snapshot.", _oldest_reader),
    Family("litereplica_clients_without_locks", GAUGE, MOUNT, _DB, "Clients that read without SQLite's locks.",
           _count("clients_without_locks")),
    Family("litereplica_size_bytes", GAUGE, MOUNT, _DB, "Size of the database.", _each("size_bytes")),
    Family("litereplica_ltx_files", GAUGE, MOUNT, _DB, "LTX files that its pages are in.", _each("ltx_files")),
    Family("litereplica_read_pages_total", COUNTER, MOUNT, ("db", "source"), "Pages read from memory, disk and store.",
           _cached),
    Family("litereplica_hydration_pages", GAUGE, MOUNT, _DB, "Pages to hydrate.", _below("hydration", "pages")),
    Family("litereplica_hydration_missing_pages", GAUGE, MOUNT, _DB, "Of these, pages that are not at hand.",
           _below("hydration", "missing_pages")),
    Family("litereplica_active_databases", GAUGE, MOUNT, _DB, "Open databases of a prefix mount.", _each("active")),
    Family("litereplica_activations_total", COUNTER, MOUNT, _DB, "Databases opened, of a prefix mount.",
           _each("activations")),
    Family("litereplica_failed_databases", GAUGE, MOUNT, _DB, "Databases that cannot be opened, of a prefix mount.",
           _each("failed")),
    Family("litereplica_known_databases", GAUGE, MOUNT, _DB, "Names known, of a prefix mount.", _each("known_names")),
    Family("litestream_db_size", GAUGE, WRITER, _DB, "Size of the database file.", _size(lambda each: each.database)),
    Family("litestream_wal_size", GAUGE, WRITER, _DB, "Size of the WAL.", _size(lambda each: each.wal)),
    Family("litestream_total_wal_bytes", UNTYPED, WRITER, _DB, "Bytes of LTX files made from the WAL.",
           _each("published_bytes")),
    Family("litestream_txid", GAUGE, WRITER, _DB, "TXID published.", _txid("txid")),
    Family("litestream_sync_count", UNTYPED, WRITER, _DB, "Rounds of publishing.", _each("syncs")),
    Family("litestream_sync_error_count", UNTYPED, WRITER, _DB, "Those that failed.", _each("sync_errors")),
    Family("litestream_sync_seconds", UNTYPED, WRITER, _DB, "Time spent on those that had something to publish.",
           _each("sync_ms", scale=0.001)),
    Family("litestream_checkpoint_count", UNTYPED, WRITER, ("db", "mode"), "Checkpoints of the whole WAL.",
           _checkpoints),
    Family("litestream_replica_operation_total", COUNTER, WRITER, _OPERATION, "Requests to the store.",
           _operations(lambda each: [((), each["requests"])])),
    Family("litestream_replica_operation_bytes", UNTYPED, WRITER, _OPERATION, "Bytes of their bodies.",
           _operations(lambda each: [((), each["sent_bytes"] + each["received_bytes"])])),
    Family("litestream_replica_operation_errors_total", COUNTER, WRITER, (*_OPERATION, "code"), "Requests that failed.",
           _operations(_errors_by_code)),
)  # fmt: skip
