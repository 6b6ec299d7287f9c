"""Lists every key of a configuration file, and how it is treated.

A key of Litestream 0.5 is *honoured*; *idle*, if it is not needed here, because its purpose is achieved in another way;
or *refused*, if ignoring it would give the file another meaning than the user expects. An idle key is accepted and
named once in the log; a refused or unknown key is an error. A refused key that is empty or false counts as absent. A
*former* key, of Litestream 0.3, is obeyed, and the log says what to write instead. At the top of the file, keys that
begin with `x-` and those that only hold anchors are accepted.

To add a key: name it below as honoured, and read it in `targets.py` (`parse_settings`, for a database), in `config.py`
(for the whole file) or in `replica.py` (for a store). Add a line to docs/litereplica.yml and a case to the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from litereplica.config.document import Section
from litereplica.config.findings import Findings
from litereplica.storage.s3_options import OPTION_NAMES, hyphenated

_LOCAL_STATE = "local state is beside the database, in .<file>-litereplica"
_WAL_IS_WATCHED = "the WAL is polled continuously"
_OWN_CHECKPOINTS = "litereplica has its own schedule for checkpoints"
_OWN_TRANSFERS = "litereplica chooses the size and number of concurrent transfers"
_ALWAYS_CHECKED = "every file is checked whenever it is read or made"
_OTHER_STORE = "it applies to other kinds of stores"
_MD5_WHERE_NEEDED = "checksums are sent where S3 requires them"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one kind of section.

    `idle` and `refused` map keys to the reason, `former` maps them to what replaces them. `free` allows further keys
    that begin with `x-` or hold anchors.
    """

    honoured: frozenset[str]
    idle: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    former: Mapping[str, str] = field(default_factory=dict)
    free: bool = False


def _many(names: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


_STORE_HONOURED = frozenset(
    [
        *("sync-interval", "access-key-id", "secret-access-key", "region", "bucket", "endpoint", "force-path-style"),
        *("sse-customer-key", *map(hyphenated, OPTION_NAMES)),
    ]
)
_STORE_IDLE = {
    **_many("validation-interval", _ALWAYS_CHECKED),
    **_many("max-sync-ltx-files", _OWN_TRANSFERS),
    **_many("auto-recover", "lost or damaged local state is always rebuilt"),
    **_many("require-content-md5", _MD5_WHERE_NEEDED),
    **_many("account-name account-key sas-token", _OTHER_STORE),
    **_many("host user password key-path concurrent-writes host-key", _OTHER_STORE),
    **_many("webdav-url webdav-username webdav-password", _OTHER_STORE),
    **_many("jwt seed creds nkey username token tls root-cas client-cert client-key", _OTHER_STORE),
    **_many("max-reconnects reconnect-wait timeout", _OTHER_STORE),
}
_STORE_REFUSED = {"age": "the files would not be encrypted; use default encryption of the bucket, or remove it"}

_SCHEDULE = frozenset({"levels", "snapshot", "l0-retention", "retention", "lease", "mode", "group"})

DOCUMENT = Keys(
    honoured=_STORE_HONOURED
    | _SCHEDULE
    | {"dbs", "exec", "exec-without-credentials", "logging", "socket", "shutdown-sync-timeout"}
    | {"heartbeat-url", "heartbeat-interval", "addr", "metrics-token-file"},
    idle={
        **_STORE_IDLE,
        **_many("l0-retention-check-interval", "litereplica has its own schedule for deletions"),
        **_many("verify-compaction validation", _ALWAYS_CHECKED),
        "mcp-addr": "there is no such server: use 'litereplica status --json'",
        **_many("shutdown-sync-interval", "unpublished transactions are published by the next start"),
    },
    refused=_STORE_REFUSED,
    free=True,
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
    refused=_STORE_REFUSED,
    former={
        "retention": "snapshot: {retention: …} beside the replica, or at the top of the file",
        "snapshot-interval": "snapshot: {interval: …} beside the replica, or at the top of the file",
        "retention-check-interval": "nothing: litereplica has its own schedule for deletions",
    },
)

LEVEL = Keys(frozenset({"interval"}))
SNAPSHOT = Keys(frozenset({"interval", "retention"}))
RETENTION = Keys(frozenset({"enabled", "tiers"}))
TIER = Keys(frozenset({"every", "keep"}))
LOGGING = Keys(frozenset({"level", "type", "stderr"}), idle={"source": "loggers are named after their modules"})
SOCKET = Keys(frozenset({"enabled", "path", "permissions"}))


def check(section: Section, keys: Keys, findings: Findings) -> None:
    """Note each idle and each former key, and each that is refused or unknown as an error."""
    for key in section:
        entry, name = section.entry(key), section.name(_shown(key))
        if key in keys.honoured or (keys.free and (key.startswith("x-") or _is_anchor(section, key, keys))):
            continue
        if key in keys.idle or key in keys.former:
            if key in section and not entry.is_empty:
                where = f"{name} (line {entry.line})"
                if key in keys.idle:
                    findings.notes.append(f"{where}: {keys.idle[key]}")
                else:
                    findings.former.append(f"{where} is of Litestream 0.3: write instead {keys.former[key]}")
            continue
        with findings.caught():
            if key not in keys.refused:
                raise section.error(f"there is no key {name}", key=key, hint=_suggestion(key, keys))
            if not entry.is_empty:
                raise section.error(f"{name} is not supported", key=key, hint=keys.refused[key])


def _is_anchor(section: Section, key: str, keys: Keys) -> bool:
    known = (keys.idle, keys.refused, keys.former)
    return not any(key in each for each in known) and section.holds_anchor(key)


def _suggestion(key: str, keys: Keys) -> str:
    known = [*keys.honoured, *keys.former, *keys.idle, *keys.refused]
    hyphens = key[:40].lower().replace("_", "-")
    if hyphens in known:
        return f"write {hyphens}"
    close = get_close_matches(hyphens, known, n=1)
    return f"did you mean {close[0]}?" if close else f"the keys are {', '.join(sorted(keys.honoured))}"


def _shown(key: str) -> str:
    """A key for a message; one that is long or unprintable is not shown, since it may be a secret."""
    return key if len(key) <= 40 and key.isprintable() else "like this"
