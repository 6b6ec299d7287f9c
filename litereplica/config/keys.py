"""Lists every key of a configuration file, and how it is treated.

A key of Litestream 0.5 is *honoured*; *idle*, if it is not needed here, because its purpose is achieved in another way;
or *refused*, if ignoring it would give the file another meaning than the user expects. An idle key is accepted and
named once in the log; a refused or unknown key is an error. A refused key that is empty or false counts as absent.

To add a key: name it below as honoured, and read it in `targets.py` (`parse_settings`, for a database), in `config.py`
(for the whole file) or in `replica.py` (for a store). Add a line to docs/litereplica.yml and a case to the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from litereplica.config.document import Section

_LOCAL_STATE = "local state is beside the database, in .<file>-litereplica"
_WAL_IS_WATCHED = "the WAL is polled continuously"
_OWN_CHECKPOINTS = "litereplica has its own schedule for checkpoints"
_OWN_TRANSFERS = "litereplica chooses the size and number of concurrent transfers"
_ALWAYS_CHECKED = "every file is checked whenever it is read or made"
_OTHER_STORE = "it applies to other kinds of stores"
_MD5_WHERE_NEEDED = "checksums are sent where S3 requires them"

_ENCRYPTION = "the files would not be encrypted as configured; use default encryption of the bucket"
_SINCE_05 = "since Litestream 0.5 it is {} at the top of the file"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one kind of section. `idle` and `refused` map keys to the reason."""

    honoured: frozenset[str]
    idle: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def _many(names: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


_STORE_HONOURED = frozenset(
    ["sync-interval", "access-key-id", "secret-access-key", "region", "bucket", "endpoint", "force-path-style"]
)
_STORE_IDLE = {
    **_many("validation-interval", _ALWAYS_CHECKED),
    **_many("max-sync-ltx-files part-size concurrency", _OWN_TRANSFERS),
    **_many("auto-recover", "lost or damaged local state is always rebuilt"),
    **_many("sign-payload", "requests are signed as the store requires"),
    **_many("require-content-md5", _MD5_WHERE_NEEDED),
    **_many("account-name account-key sas-token", _OTHER_STORE),
    **_many("host user password key-path concurrent-writes host-key", _OTHER_STORE),
    **_many("webdav-url webdav-username webdav-password", _OTHER_STORE),
    **_many("jwt seed creds nkey username token tls root-cas client-cert client-key", _OTHER_STORE),
    **_many("max-reconnects reconnect-wait timeout", _OTHER_STORE),
}
_STORE_REFUSED = {
    "age": "the files would not be encrypted; remove it",
    **_many("sse-customer-algorithm sse-customer-key sse-customer-key-path sse-kms-key-id", _ENCRYPTION),
    "skip-verify": "name the certificate authority in AWS_CA_BUNDLE instead",
    "storage-class": "set it by a lifecycle rule of the bucket",
}

_SCHEDULE = frozenset({"levels", "snapshot", "l0-retention", "retention", "lease", "mode", "group"})

DOCUMENT = Keys(
    honoured=_STORE_HONOURED
    | _SCHEDULE
    | {"dbs", "exec", "exec-without-credentials", "logging", "socket", "shutdown-sync-timeout"},
    idle={
        **_STORE_IDLE,
        **_many("l0-retention-check-interval", "litereplica has its own schedule for deletions"),
        **_many("verify-compaction validation", _ALWAYS_CHECKED),
        **_many("shutdown-sync-interval", "unpublished transactions are published by the next start"),
        **_many("heartbeat-interval", "there is no heartbeat"),
        "addr": "metrics are not served; ask 'litereplica status --json'",
    },
    refused={
        **_STORE_REFUSED,
        "heartbeat-url": "there is no heartbeat; monitor 'litereplica status --json' instead",
        "mcp-addr": "there is no such server; use 'litereplica status --json'",
    },
)

DATABASE = Keys(
    honoured=_SCHEDULE
    | {"path", "dir", "pattern", "recursive", "watch", "replica", "replicas", "restore-if-db-not-exists"},
    idle={
        **_many("meta-path meta-dir", _LOCAL_STATE),
        **_many("monitor-interval", _WAL_IS_WATCHED),
        **_many("checkpoint-interval min-checkpoint-page-count max-checkpoint-page-count", _OWN_CHECKPOINTS),
        **_many("truncate-page-n busy-timeout max-sync-wal-bytes", _OWN_CHECKPOINTS),
    },
)

REPLICA = Keys(
    honoured=_STORE_HONOURED | {"type", "path", "url"},
    idle={**_STORE_IDLE, "name": "a database has one replica"},
    refused={
        **_STORE_REFUSED,
        "retention": _SINCE_05.format("snapshot.retention"),
        "snapshot-interval": _SINCE_05.format("snapshot.interval"),
        "retention-check-interval": "litereplica has its own schedule for deletions; remove it",
    },
)

LEVEL = Keys(frozenset({"interval"}))
SNAPSHOT = Keys(frozenset({"interval", "retention"}))
RETENTION = Keys(frozenset({"enabled", "tiers"}))
TIER = Keys(frozenset({"every", "keep"}))
LOGGING = Keys(frozenset({"level", "type", "stderr"}), idle={"source": "loggers are named after their modules"})
SOCKET = Keys(frozenset({"enabled", "path"}), idle={"permissions": "only the user who runs it may connect"})

PARAMETERS_IDLE = {
    **_many("sign-payload signPayload", _STORE_IDLE["sign-payload"]),
    **_many("require-content-md5 requireContentMD5", _MD5_WHERE_NEEDED),
    **_many("part-size partSize concurrency", _OWN_TRANSFERS),
}
"""The same for the parameters of a replica's URL."""


def check(section: Section, keys: Keys) -> list[str]:
    """Return a note for each idle key. Raises `UsageError` for a refused or unknown key."""
    notes = []
    for key in section:
        if key in keys.honoured:
            continue
        entry = section.entry(key)
        if key in keys.idle:
            if key in section and not entry.is_empty:
                notes.append(f"{section.name(key)} (line {entry.line}): {keys.idle[key]}")
        elif key not in keys.refused:
            raise section.error(f"there is no key {section.name(_shown(key))}", key=key, hint=_suggestion(key, keys))
        elif not entry.is_empty:
            raise section.error(f"{section.name(key)} is not supported", key=key, hint=keys.refused[key])
    return notes


def _suggestion(key: str, keys: Keys) -> str:
    close = get_close_matches(key[:40].lower().replace("_", "-"), [*keys.honoured, *keys.idle, *keys.refused], n=1)
    return f"did you mean {close[0]}?" if close else f"the keys are {', '.join(sorted(keys.honoured))}"


def _shown(key: str) -> str:
    """A key for a message; one that is long or unprintable is not shown, since it may be a secret."""
    return key if len(key) <= 40 and key.isprintable() else "like this"
