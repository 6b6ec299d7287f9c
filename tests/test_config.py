"""The configuration file: what text becomes which values, and which becomes an error of one line."""

from __future__ import annotations

import base64
import logging
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from litereplica.compaction.levels import INTERVALS_MS, Levels
from litereplica.compaction.retention import NEVER, RetentionPolicy, Tier
from litereplica.config import Config, Surroundings, parse_config
from litereplica.config import keys as config_keys
from litereplica.config.config import split_command
from litereplica.config.document import parse_document
from litereplica.config.expand import expand
from litereplica.errors import ConfigurationErrors, UsageError
from litereplica.file_access import WantedAccess
from litereplica.storage.credentials import Credentials
from litereplica.storage.s3_options import S3Options
from litereplica.storage.url import parse_url, same_place
from litereplica.times import DAY_MS, HOUR_MS, MINUTE_MS
from litereplica.writer.publish.lease_keeper import LeaseMode
from litereplica.writer.settings import DatabaseTarget, DirectoryTarget, WriterSettings

EXAMPLE = Path(__file__).parents[1] / "docs/litereplica.yml"
SECRET = "hunter2-very-secret"
SSE_KEY = base64.b64encode(bytes(range(32))).decode()


def parse(text: str, **variables: str) -> Config:
    surroundings = Surroundings(variables, pid=4711, directory=Path("/cwd"), home=Path("/home/ann"))
    return parse_config(text, file="test.yml", surroundings=surroundings)


def one(replica: str, *, before: str = "", beside: str = "") -> Config:
    """A file with one database; `replica` is its replica's mapping in one line, `beside` lines next to it."""
    lines = "".join(f"\n    {line}" for line in beside.splitlines())
    return parse(f"{before}\ndbs:\n  - path: /srv/app.db{lines}\n    replica: {replica}\n")


def settings_of(config: Config) -> WriterSettings:
    return config.targets[0].settings


def error(text: str, **variables: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(text, **variables)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_database_is_read_with_litestreams_defaults() -> None:
    config = one("{url: s3://bucket/app}")
    assert config.targets == (DatabaseTarget(Path("/srv/app.db"), "s3://bucket/app", WriterSettings()),)
    assert settings_of(config).levels == Levels(INTERVALS_MS, DAY_MS)
    assert (config.command, config.notes, config.unset) == ((), (), ())


@pytest.mark.parametrize(
    ("replica", "url"),
    [
        ("{path: /mnt/replica}", "file:///mnt/replica"),
        ("{path: replica/../other}", "file:///cwd/other"),
        ("{type: file, path: ~/replica}", "file:///home/ann/replica"),
        ("{url: 'file:///mnt/a b'}", "file:///mnt/a b"),
        ("{type: s3, bucket: b, path: x/y}", "s3://b/x/y"),
        ("{type: s3, bucket: b, path: 'x y%z', region: eu-west-1}", "s3://b/x%20y%25z?region=eu-west-1"),
        ("{type: s3, bucket: b, path: x, endpoint: 'localhost:9000'}", "s3://b/x?endpoint=http://localhost:9000"),
        ("{type: s3, bucket: 12, path: x}", "s3://12/x"),
        ("{url: s3://b/x, endpoint: minio.example.com}", "s3://b/x?endpoint=https://minio.example.com"),
        ("{url: 's3://b/x?region=a', region: b}", "s3://b/x?region=b"),
        ("{url: 's3://b/x?endpoint=h&forcePathStyle=false'}", "s3://b/x?endpoint=https://h&forcePathStyle=false"),
        (
            "{url: s3://b/x, endpoint: h, force-path-style: false}",
            "s3://b/x?endpoint=https://h&forcePathStyle=false",
        ),
        ("{url: s3://b.s3.eu-west-1.amazonaws.com/x}", "s3://b/x?region=eu-west-1"),
        ("{url: s3://b.s3.amazonaws.com/x}", "s3://b/x"),
        (
            "{url: s3://b.nyc3.digitaloceanspaces.com/x}",
            "s3://b/x?endpoint=https://nyc3.digitaloceanspaces.com&region=nyc3",
        ),
        (
            "{url: s3://b.s3.us-west-000.backblazeb2.com/x}",
            "s3://b/x?endpoint=https://s3.us-west-000.backblazeb2.com&region=us-west-000",
        ),
        ("{url: s3://b.localhost:9000/x}", "s3://b/x?endpoint=http://localhost:9000"),
    ],
)
def test_replica_becomes_one_url(replica: str, url: str) -> None:
    assert one(replica).targets[0].url == url


def test_top_of_the_file_gives_defaults_that_a_replica_overrides() -> None:
    config = parse(
        """
access-key-id: top
secret-access-key: top-secret
region: r1
endpoint: e1
sync-interval: 5s
dbs:
  - path: a
    replica: {type: s3, bucket: b, path: a}
  - path: b
    replica: {type: s3, bucket: b, path: b, region: r2, endpoint: e2, sync-interval: 200ms,
              access-key-id: own, secret-access-key: own-secret}
  - path: c
    replica: {path: c}
"""
    )
    first, second, third = config.targets
    assert first.url == "s3://b/a?endpoint=https://e1&region=r1"
    assert second.url == "s3://b/b?endpoint=https://e2&region=r2"
    assert (first.credentials, second.credentials) == (
        Credentials("top", "top-secret"),
        Credentials("own", "own-secret"),
    )
    assert third.credentials is None
    assert [target.settings.sync_interval_s for target in config.targets] == [5.0, 0.2, 5.0]


def test_directory_is_read() -> None:
    config = parse(
        "dbs: [{dir: /srv, pattern: '*.db', recursive: yes, watch: true, replicas: [{url: s3://b/all}]}, "
        "{dir: /other, replica: {path: /r}}]"
    )
    assert config.targets == (
        DirectoryTarget(Path("/srv"), "s3://b/all", WriterSettings(), "*.db", True, True),
        DirectoryTarget(Path("/other"), "file:///r", WriterSettings(), "*", False, False),
    )


@pytest.mark.parametrize("path", ["sqlite:///srv/app.db", "sqlite3:///srv/app.db", "/srv/x/../app.db"])
def test_paths_lose_schemes_and_dots(path: str) -> None:
    assert parse(f"dbs: [{{path: '{path}', replica: {{path: r}}}}]").targets[0].path == Path("/srv/app.db")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("levels: [{interval: 1m}, {interval: 1h}]", Levels((MINUTE_MS, HOUR_MS))),
        ("levels: []", Levels(())),
        ("snapshot: {interval: 1h}", Levels(snapshot_interval_ms=HOUR_MS)),
        ("snapshot: {interval: never}", Levels(snapshot_interval_ms=None)),
        ("snapshot: {}", Levels()),
        ("snapshot:", Levels()),
    ],
)
def test_levels_may_stand_at_the_top_or_with_a_database(text: str, expected: Levels) -> None:
    assert settings_of(one("{path: r}", before=text)).levels == expected
    assert settings_of(one("{path: r}", beside=text)).levels == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("l0-retention: 1h", RetentionPolicy(l0_ms=HOUR_MS)),
        ("l0-retention: 0", RetentionPolicy(l0_ms=None)),
        ("l0-retention: 0s", RetentionPolicy(l0_ms=None)),
        ("l0-retention: never", RetentionPolicy(l0_ms=None)),
        ("snapshot: {retention: 168h}", RetentionPolicy(snapshot_ms=7 * DAY_MS)),
        ("snapshot: {retention: never}", RetentionPolicy(snapshot_ms=None)),
        ("retention: {enabled: false}", NEVER),
        ("retention: {enabled: true}", RetentionPolicy()),
        (
            "retention: {tiers: [{every: 1h, keep: 7d}, {every: 1d, keep: 365d}]}",
            RetentionPolicy(tiers=(Tier(HOUR_MS, 7 * DAY_MS), Tier(DAY_MS, 365 * DAY_MS))),
        ),
    ],
)
def test_retention_may_stand_at_the_top_or_with_a_database(text: str, expected: RetentionPolicy) -> None:
    assert settings_of(one("{path: r}", before=text)).retention == expected
    assert settings_of(one("{path: r}", beside=text)).retention == expected


def test_what_a_database_says_wins_over_the_top() -> None:
    config = one(
        "{path: r}",
        before="snapshot: {interval: 1h, retention: 2h}\nlease: wait",
        beside="snapshot: {interval: 3h}\nlease: off",
    )
    assert settings_of(config).levels == Levels(snapshot_interval_ms=3 * HOUR_MS)
    assert settings_of(config).retention.snapshot_ms == 2 * HOUR_MS
    assert settings_of(config).lease is LeaseMode.OFF


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("hold", LeaseMode.HOLD),
        ("wait", LeaseMode.WAIT),
        ("off", LeaseMode.OFF),
        ("'off'", LeaseMode.OFF),
        ("", LeaseMode.HOLD),
    ],
)
def test_lease_modes(text: str, mode: LeaseMode) -> None:
    assert settings_of(one("{path: r}", before=f"lease: {text}")).lease is mode


def test_mode_and_group_of_objects_are_read_and_a_database_has_its_own() -> None:
    first, second = "{path: a, replica: {path: r}}", "{path: b, mode: '0600', replica: {path: s}}"
    config = parse(f"mode: 0640\ngroup: backup\ndbs:\n  - {first}\n  - {second}\n")
    assert [target.settings.access for target in config.targets] == [
        WantedAccess(0o640, "backup"),
        WantedAccess(0o600, "backup"),
    ]


def test_exec_logging_and_socket_are_read() -> None:
    config = one(
        "{path: r}",
        before="exec: myapp --name 'a b'\nlogging: {level: WARN, type: json, stderr: true}\nsocket: {path: run/s.sock}",
    )
    assert config.command == ("myapp", "--name", "a b")
    assert (config.logging.level, config.logging.json) == (logging.WARNING, True)
    assert (config.socket.enabled, config.socket.path) == (True, Path("/cwd/run/s.sock"))
    assert not one("{path: r}", before="socket: {enabled: false}").socket.enabled
    assert not config.withholds_credentials
    assert one("{path: r}", before="exec-without-credentials: yes").withholds_credentials
    assert config.socket.mode == 0o600
    for text in ("0660", "660", "'0o660'"):
        assert one("{path: r}", before=f"socket: {{path: s, permissions: {text}}}").socket.mode == 0o660
    with pytest.raises(UsageError, match=r"permissions is no mode of a file: .*write 0600|line 1"):
        one("{path: r}", before="socket: {permissions: rw}")


def test_merge_keys_and_aliases_are_followed() -> None:
    config = parse(
        "dbs:\n"
        "  - &first {path: a, lease: wait, replica: {path: ra}}\n"
        "  - {<<: *first, path: b, replica: {path: rb}}\n"
        "  - {<<: [{path: c}, *first], replica: {path: rc}}\n"
    )
    assert [target.path.name for target in config.targets] == ["a", "b", "c"]
    assert {target.settings.lease for target in config.targets} == {LeaseMode.WAIT}


@pytest.mark.parametrize(
    ("text", "expected", "unset"),
    [
        ("$A ${A} $A-x ${B}", "1 1 1-x 2 3", ()),
        ("$PID", "4711", ()),
        ("${MISSING}x$OTHER", "x", ("MISSING", "OTHER")),
        ("costs $ 5 $", "costs $ 5 $", ()),
        ("a${}b${c", "abc", ()),
        ("$$x", "x", ("$",)),
        ("# $COMMENT\n$A", "# \n1", ()),
        ("${A:-b}", "", ("A (defaults after :- are not expanded)",)),
        ("${OTHER-b}", "", ("OTHER (defaults after - are not expanded)",)),
    ],
)
def test_variables_are_replaced_as_go_does(text: str, expected: str, unset: tuple[str, ...]) -> None:
    done = expand(text, {"A": "1", "B": "2 3"}, pid=4711)
    assert (done.fill(done.text)[0], done.unset) == (expected, unset)


def test_variables_are_left_alone_when_that_is_asked_for() -> None:
    text = "dbs: [{path: $X, replica: {path: r}}]"
    surroundings = Surroundings(None, pid=1, directory=Path("/cwd"))
    assert parse_config(text, file="f", surroundings=surroundings).targets[0].path == Path("/cwd/$X")
    assert parse(text, X="y").targets[0].path == Path("/cwd/y")
    assert parse(text.replace("$X", "x$X")).unset == ("X",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("app", ("app",)),
        ("app 'a b' \"c $d\" e\\ f", ("app", "a b", "c $d", "e f")),
        ("sh -c 'a && b | c > d'", ("sh", "-c", "a && b | c > d")),
        ("app a\\;b", ("app", "a;b")),
        ("app --x=#y", ("app", "--x=#y")),
    ],
)
def test_command_is_split_as_a_shell_splits_words(text: str, words: tuple[str, ...]) -> None:
    assert split_command(text) == words


@pytest.mark.parametrize("text", ["a && b", "a; b", "a | b", "a > b", "a < b", "a &", "'a", "", " ", "''"])
def test_command_that_needs_a_shell_or_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        split_command(text)


DB = "dbs:\n  - path: a\n    replica: {path: r}\n"


def with_replica(replica: str) -> str:
    return DB.replace("{path: r}", replica)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "test.yml, line 1: no database is configured: add dbs:"),
        ("dbs: []", "no database is configured"),
        ("- a", "line 1: the document is a list: begin it with 'dbs:'"),
        ("dbs: {a: b}", "line 1: dbs is not a list"),
        ("dbs: [a]", "line 1: dbs[0] is not a mapping"),
        ("dbs:\n  - pth: a\n", "line 2: there is no key dbs[0].pth: did you mean path?"),
        (
            "dbs:\n  - path: a\n    replica:\n      sync_interval: 1s\n",
            "line 4: there is no key dbs[0].replica.sync_interval: write sync-interval",
        ),
        ("snapshots: {}\n" + DB, "line 1: there is no key snapshots: did you mean snapshot?"),
        (DB + "logging: {levle: info}", "there is no key logging.levle: did you mean level?"),
        ("dbs:\n  - path: a\n", "line 2: dbs[0] has no replica"),
        ("dbs:\n  - replica: {path: r}\n", "dbs[0] names neither a path nor a dir"),
        ("dbs:\n  - path: a\n    dir: b\n    replica: {path: r}\n", "names both a path and a dir"),
        ("dbs:\n  - path: a\n    watch: true\n    replica: {path: r}\n", "line 3: dbs[0].watch belongs to a dir"),
        ("dbs:\n  - path: a\n    replica: {}\n", "dbs[0].replica names neither url nor path"),
        (
            "dbs:\n  - path: a\n    replica: {path: r}\n    replicas: [{path: s}]\n",
            "line 4: dbs[0] has both replica and replicas",
        ),
        (
            "dbs:\n  - path: a\n    replicas: [{path: r}, {path: s}]\n",
            "line 3: dbs[0].replicas: a database has one replica",
        ),
        (DB + "  - path: ./a\n    replica: {path: s}\n", "lines 2 and 4: /cwd/a is named twice"),
        (DB + "  - path: b\n    replica: {path: ./r}\n", "lines 2 and 4: /cwd/a and /cwd/b have the same replica"),
        (DB + "  - dir: .\n    replica: {path: s}\n", "lines 2 and 4: /cwd/a is one of the databases of /cwd"),
        (with_replica("{path: r, url: s3://b/x}"), "url and path exclude each other"),
        (with_replica("{path: s3://b/x}"), "is a URL: name it as url"),
        (with_replica("{type: s3, path: x}"), "names no bucket"),
        (with_replica("{url: s3://b/x, bucket: b}"), "url and bucket exclude each other"),
        ("bucket: b\n" + with_replica("{url: s3://b/x}"), "url and bucket exclude each other"),
        (with_replica("{url: gs://b/x}"), "line 3: dbs[0].replica.url: a replica of type gs is not supported"),
        (with_replica("{type: sftp, host: h}"), "dbs[0].replica.type: a replica of type sftp is not supported"),
        (with_replica("{type: floppy}"), "is of no known type"),
        (with_replica("{url: 's3://b/x?skipverify=true'}"), "'skipverify' is not supported: did you mean skip-verify?"),
        (with_replica("{url: 's3://b/x?sseCustomerKey=a'}"), "a URL must not contain a key: put it in a file"),
        (with_replica("{url: s3://b/x, sse-customer-key: a}"), "dbs[0].replica.sse-customer-key is not a key"),
        (with_replica("{url: s3://b/x, part-size: 1MB}"), "line 3: dbs[0].replica.part-size is not between 5 MiB and"),
        ("part-size: x\n" + with_replica("{url: s3://b/x}"), "line 1: part-size is not a size"),
        ("concurrency: 0\n" + with_replica("{url: s3://b/x}"), "line 1: concurrency is not a number from 1 to"),
        (with_replica("{url: s3://b/x, sse-customer-algorithm: DES}"), "sse-customer-algorithm is not AES256"),
        (
            with_replica(f"{{url: 's3://b/x?sseKmsKeyId=k', sse-customer-key: {SSE_KEY}}}"),
            "sse-customer-key excludes sse-kms-key-id",
        ),
        (
            with_replica(f"{{url: s3://b/x, endpoint: 'http://h.example', sse-customer-key: {SSE_KEY}}}"),
            "an SSE-C key would be sent over plain http",
        ),
        (
            with_replica("{url: s3://b/x, endpoint: 'http://h.example', sse-customer-key-path: k}"),
            "an SSE-C key would be sent over plain http",
        ),
        (
            with_replica("{url: s3://b/x, endpoint: 'ftp://x'}"),
            "line 3: dbs[0].replica: the endpoint is neither http nor https",
        ),
        (with_replica("{path: r, sync-interval: 10}"), "line 3: dbs[0].replica.sync-interval is not a duration"),
        (with_replica("{path: r, sync-interval: 0s}"), "sync-interval is zero"),
        (with_replica("{path: r, sync-interval: [1s]}"), "is a list: write one value"),
        (with_replica("{path: r, retention: 24}"), "line 3: dbs[0].replica.retention is not a duration"),
        (
            with_replica("{path: r, age: {recipients: [x]}}"),
            "dbs[0].replica.age is not supported: the files would not be encrypted",
        ),
        ("heartbeat-url: ftp://x\n" + DB, "line 1: heartbeat-url is not a URL of http"),
        ("heartbeat-interval: 30s\n" + DB, "line 1: heartbeat-interval is less than a minute"),
        (DB + "levels: [{}]", "levels[0] has no interval"),
        (DB + "levels: [" + "{interval: 1s}," * 9 + "]", "line 4: there are 9 levels: configure at most 8"),
        (DB + "retention: {tiers: [{every: 1h}]}", "retention.tiers[0] needs every and keep"),
        (
            DB + "snapshot: {retention: never}\nretention: {tiers: [{every: 1h, keep: 1d}]}",
            "line 5: retention tiers are configured, but everything is kept for ever",
        ),
        (DB + "lease: maybe", "line 4: lease is not a lease mode: write off, hold, wait"),
        (DB + "mode: 0755", "line 4: mode is not a mode of files"),
        (DB + "exec: a | b", "line 4: exec: the command is not run by a shell"),
        (DB + "logging: {level: loud}", "logging.level is not a log level"),
        (DB + "logging: {type: xml}", "logging.type is not a log type"),
        (DB + "restore-if-db-not-exists: true", "there is no key restore-if-db-not-exists"),
        (
            DB + "    restore-if-db-not-exists: maybe",
            "line 4: dbs[0].restore-if-db-not-exists is neither true nor false",
        ),
        (DB + "lease: off\nlease: hold", "line 5: 'lease' is given twice"),
        ("x: !!python/object:os.system {}\n" + DB, "line 1: a value has a tag"),
        ("? [a]\n: b\n", "a key is a list"),
        ("<<: 3\n" + DB, "the merged value is not a mapping"),
        ("snapshot: &a {<<: *a}\n" + DB, "a mapping is merged into itself"),
        ("dbs: [", "test.yml, line 1: this is not YAML"),
        ("a: b: c", "line 1: this is not YAML"),
        ("\x00", "a control character"),
        ("[" * 5000, "nested too deeply"),
        ("a: *b", "this is not YAML"),
        ("--- a\n--- b\n", "this is not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_key(text: str, expected: str) -> None:
    assert expected in error(text)


@pytest.mark.parametrize(
    "text",
    [
        with_replica("{url: s3://b/x}") + f"secret-access-key: {SECRET}\n",
        with_replica("{url: s3://b/x}") + f"secret-access-key: [{SECRET}]\n",
        DB + f"secret-access-key: *{SECRET}\n",
        DB + f"secret-access-key: '{SECRET}\n",
        DB + f"secret-access-key: {{{SECRET}\n",
        DB + f"secret-access-key: !{SECRET}\n",
        DB + f"secret-access-key: a: {SECRET}\n",
        DB + f"secret-access-key: %{SECRET}\nx: @{SECRET}",
        DB + f"{SECRET}{SECRET}{SECRET}: 1\n",
        with_replica(f"{{url: 's3://key:{SECRET}@b/x'}}"),
        with_replica(f"{{url: 's3://b/x?secret={SECRET}'}}"),
        with_replica(f"{{url: s3://b/x, endpoint: 'https://u:{SECRET}@h'}}"),
        with_replica(f"{{type: {SECRET}}}"),
        DB + f"age: {SECRET}\n",
        DB + f"logging: {{level: {SECRET}}}",
        DB + f"lease: {SECRET}",
        DB + f"l0-retention: {SECRET}",
    ],
)
def test_no_error_repeats_a_value(text: str) -> None:
    assert SECRET not in error(text)


def test_credentials_are_shown_nowhere() -> None:
    config = one(f"{{url: s3://b/x, access-key-id: {SECRET}, secret-access-key: {SECRET}}}")
    assert config.targets[0].credentials == Credentials(SECRET, SECRET)
    assert SECRET not in repr(config)
    assert SECRET not in config.targets[0].url


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30.0), ("0s", 5.0), ("", 5.0)])
def test_time_for_what_is_left_at_a_stop_is_litestreams_key(text: str, seconds: float) -> None:
    config = one("{path: r}", before=f"shutdown-sync-timeout: {text}")
    assert settings_of(config).stop_limit_s == seconds
    assert not config.notes


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("storage-class: STANDARD_IA", S3Options(storage_class="STANDARD_IA")),
        ("skip-verify: yes", S3Options(skip_verify=True)),
        ("sign-payload: false", S3Options(sign_payload=False)),
        ("part-size: 16MB", S3Options(part_bytes=16_000_000)),
        ("part-size: 8MiB", S3Options(part_bytes=8 << 20)),
        ("part-size: 5242880", S3Options(part_bytes=5 << 20)),
        ("concurrency: 3", S3Options(concurrency=3)),
        ("sse-kms-key-id: alias/k", S3Options(sse_kms_key_id="alias/k")),
        ("sse-customer-key-path: ~/k", S3Options(sse_customer_key_path="/home/ann/k")),
        ("sse-customer-algorithm: AES256", S3Options()),
    ],
)
def test_options_of_a_store_may_stand_with_the_replica_at_the_top_or_in_the_url(text: str, options: S3Options) -> None:
    key, _, value = text.partition(": ")
    url = f"s3://b/x?{key}={'/home/ann/k' if value == '~/k' else value}"
    for config in (
        one(f"{{url: s3://b/x, {text}}}"),
        one("{url: s3://b/x}", before=text),
        one(f"{{url: '{url}'}}"),
    ):
        parsed = parse_url(config.targets[0].url)
        assert parsed.options == options
        assert same_place(config.targets[0].url, "s3://b/x")
        assert not config.notes


def test_what_a_replica_says_of_its_store_wins_over_the_top_and_over_its_url() -> None:
    config = one("{url: 's3://b/x?storageClass=A&concurrency=2', storage-class: C}", before="storage-class: B")
    assert parse_url(config.targets[0].url).options == S3Options(storage_class="C", concurrency=2)
    two = "dbs: [{path: a, replica: {url: 's3://b/x?concurrency=2'}}, {path: b, replica: {url: s3://b/x}}]"
    assert "have the same replica" in error(two)


def test_key_of_encryption_is_a_secret_and_stands_alone() -> None:
    config = one(f"{{url: s3://b/x, sse-customer-key: {SSE_KEY}}}")
    assert config.targets[0].credentials == Credentials("", "", sse_customer_key=SSE_KEY)
    assert SSE_KEY not in repr(config)
    assert SSE_KEY not in config.targets[0].url


def test_keys_of_litestream_03_are_obeyed_and_named_with_what_to_write_instead() -> None:
    config = one("{path: r, retention: 72h, snapshot-interval: 6h, retention-check-interval: 1h}")
    assert settings_of(config).retention.snapshot_ms == 3 * DAY_MS
    assert settings_of(config).levels == Levels(snapshot_interval_ms=6 * HOUR_MS)
    assert [line.partition(" (line ")[0] for line in config.former] == [
        "dbs[0].replica.retention",
        "dbs[0].replica.snapshot-interval",
        "dbs[0].replica.retention-check-interval",
    ]
    assert all("of Litestream 0.3: write instead " in line for line in config.former)
    today = one(
        "{path: r, retention: 72h, snapshot-interval: 6h}",
        before="snapshot: {interval: 1h}",
        beside="snapshot: {retention: 2h}",
    )
    assert settings_of(today).retention.snapshot_ms == 2 * HOUR_MS
    assert settings_of(today).levels == Levels(snapshot_interval_ms=HOUR_MS)


def test_keys_at_the_top_that_only_hold_anchors_or_begin_with_x_are_accepted() -> None:
    config = parse(
        "x-note: 1\n"
        "common: &common {region: r}\n"
        "nested: {list: [&entry {path: a, replica: {url: s3://b/a}}]}\n"
        "dbs: [*entry, {path: b, replica: {<<: *common, url: s3://b/b}}]\n"
    )
    assert [target.url for target in config.targets] == ["s3://b/a", "s3://b/b?region=r"]
    assert not config.notes
    assert "there is no key other" in error("other: {region: r}\n" + DB)
    assert "there is no key dbs[0].x-note" in error("dbs: [{path: a, x-note: 1, replica: {path: r}}]")
    assert any("mcp-addr" in note for note in parse("mcp-addr: &a ':1'\n" + DB).notes)


def test_all_errors_of_a_file_are_shown_at_once() -> None:
    with pytest.raises(ConfigurationErrors) as caught:
        parse(
            "colour: red\nlogging: {level: loud}\ndbs:\n"
            "  - {path: a, replika: 1, replica: {path: r, sync-interval: 0s}}\n"
            "  - {path: b}\n"
            "  - {path: c, lease: maybe, replica: {url: ftp://x}}\n"
            "  - {path: d, replica: {path: r}}\n"
            "  - {path: d, replica: {path: s}}\n"
        )
    told = [str(each) for each in caught.value.errors]
    assert [int(re.search(r"lines? (\d+)", each)[1]) for each in told] == [1, 2, 4, 4, 5, 6, 6, 7]  # type: ignore[index] # each has one
    assert all("\n" not in each for each in told)


def test_unset_variable_is_named_where_its_emptiness_is_the_fault() -> None:
    text = "dbs:\n  - path: a\n    replica: {url: '${REPLICA}'}\n"
    assert "names neither url nor path (REPLICA is not set)" in error(text)
    assert "(REPLICA (defaults after :- are not expanded) is not set)" in error(text.replace("}'", ":-s3://b/x}'"))
    halves = with_replica("{url: s3://b/x, access-key-id: k, secret-access-key: $SECRET_KEY}")
    assert "access-key-id has no secret-access-key with it (SECRET_KEY is not set)" in error(halves)
    assert "is not a duration (S is not set)" in error(with_replica("{path: r, sync-interval: '${S}s'}"))
    assert "not set" not in error(with_replica("{url: $X, typo: 1, path: r}"), X="s3://b/x")


def test_variable_gives_a_plain_value_its_type_and_leaves_a_quoted_one_a_text() -> None:
    config = one("{path: r}", before="socket: {enabled: $E, path: '${P}'}", beside="restore-if-db-not-exists: ${E}")
    assert config.socket.enabled
    text = "dbs: [{path: a, restore-if-db-not-exists: $E, replica: {path: r, region: $N}}]"
    assert parse(text, E="true", N="null").databases[0].restore_if_missing
    assert not parse(text, E="false", N="~").databases[0].restore_if_missing
    section = parse_document("a: $N\nb: '$N'\n", file="f", fill=lambda text: (text.replace("$N", "null"), ()))
    assert ("a" in section, section.text("b")) == (False, "null")


def test_replica_that_the_file_does_not_name_has_the_settings_of_its_top() -> None:
    top = "region: r\naccess-key-id: k\nsecret-access-key: s\nstorage-class: C"
    found = one("{path: r}", before=top).replica_at("s3://other/x?region=q")
    assert (found.url, found.credentials) == ("s3://other/x?region=r&storageClass=C", Credentials("k", "s"))


def test_keys_that_have_no_effect_are_named_with_the_reason() -> None:
    config = one(
        "{url: 's3://b/x?requireContentMD5=true', validation-interval: 1h, name: s3, skip-verify: false, age: {}}",
        before="validation: true\nmcp-addr:",
        beside="monitor-interval: 1s\nmeta-path:",
    )
    keys = [note.partition(" (line ")[0] for note in config.notes]
    assert keys == [
        "validation",
        "dbs[0].monitor-interval",
        "dbs[0].replica.validation-interval",
        "dbs[0].replica.name",
    ]
    assert all(re.search(r" \(line \d\): .+", note) for note in config.notes)


@pytest.mark.parametrize("table", ["DOCUMENT", "DATABASE", "REPLICA"])
def test_no_key_is_both_honoured_and_not(table: str) -> None:
    found = getattr(config_keys, table)
    assert not found.honoured & found.idle.keys()
    assert not found.honoured & found.refused.keys()
    assert not found.idle.keys() & found.refused.keys()


def test_example_of_the_documents_is_right() -> None:
    variables = dict.fromkeys(re.findall(r"\$\{(\w+)\}", EXAMPLE.read_text()), "x")
    config = parse(EXAMPLE.read_text(), **variables)
    database, directory = config.targets
    assert isinstance(database, DatabaseTarget)
    assert isinstance(directory, DirectoryTarget)
    assert database.url == "s3://backups/app.db?region=eu-west-1"
    assert len(database.settings.retention.tiers) == 2
    assert (config.notes, config.unset) == ((), ())


NAMES = sorted(
    {
        name
        for table in vars(config_keys).values()
        if isinstance(table, config_keys.Keys)
        for name in (*table.honoured, *table.idle, *table.refused)
    }
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=8),
    st.sampled_from(["1s", "0", "never", "off", "s3", "file", "s3://b/x", "file:///r", "a b 'c", "gs://b", "$X", "${"]),
)
TREES = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=12,
)


def only_usage_errors(text: str) -> None:
    try:
        config = parse(text, X="y")
    except UsageError as exc:
        assert str(exc).startswith("test.yml")  # noqa: PT017 - both outcomes are right
    else:
        assert config.targets


@settings(max_examples=300)
@given(st.text(alphabet=st.sampled_from("abp-: \n[]{}&*!|>'\"%@`,?#$<0.\t\ufeff\u2028")))
@example("&a [*a]")
@example("dbs: &a [*a]")
@example("dbs: &a {<<: [*a, *a]}")
@example("%YAML 9.9\n---\n")
@example("dbs: [{path: a, replica: {url: 's3://['}}]")
@example("dbs: [{path: a, replica: {url: 's3://b/x?endpoint=http://['}}]")
def test_any_text_is_a_configuration_or_a_usage_error(text: str) -> None:
    only_usage_errors(text)


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(NAMES), TREES, max_size=4),
    st.lists(st.dictionaries(st.sampled_from(NAMES), TREES, max_size=5), max_size=3),
)
def test_any_document_with_our_keys_is_a_configuration_or_a_usage_error(
    top: dict[str, object], dbs: list[object]
) -> None:
    only_usage_errors(yaml.safe_dump({**top, "dbs": dbs}, allow_unicode=True))
