"""Configuration files of the shapes that people have, read by the real Litestream and by ours.

Files that Litestream 0.5 accepts are accepted, and so are those of 0.3, with the same databases and the same kind of
store; the URLs say what each means here. `DIFFERENT` has the few that are refused here, or there, and why.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from litereplica.cli import main
from litereplica.testing.litestream import run_litestream

pytestmark = pytest.mark.slow

VARIABLES = {
    "BUCKET": "backups",
    "KEY_ID": "AKIA",
    "SECRET": "abc/def+ghi: #x",
    "ENDPOINT": "https://objects.example.com",
    "REGION": "eu-west-1",
    "ON": "true",
    "DIGITS": "0123",
    "DATA": "/data",
    "INTERVAL": "10s",
}

SHAPES: dict[str, tuple[str, dict[str, str]]] = {
    "one database, one URL": (
        "dbs:\n  - path: /var/lib/db\n    replica:\n      url: s3://mybkt.litestream.io/db\n",
        {"/var/lib/db": "s3://mybkt.litestream.io/db"},
    ),
    "keys at the top, as the documentation begins": (
        "access-key-id: AKIAxxxxxxxxxxxxxxxx\nsecret-access-key: xxxxxxxxxxxxxxxxxxxxxx/xxxxxxxxx\n\ndbs:\n"
        "  - path: /var/lib/db\n    replica:\n      url: s3://mybkt/db\n",
        {"/var/lib/db": "s3://mybkt/db"},
    ),
    "the list of replicas of 0.3": (
        "dbs:\n  - path: /data/db.sqlite\n    replicas:\n      - url: s3://b/db\n",
        {"/data/db.sqlite": "s3://b/db"},
    ),
    "a named replica with all keys of 0.3": (
        "dbs:\n- path: /data/app.db\n  replicas:\n  - name: offsite\n    type: s3\n    bucket: b\n    path: app\n"
        "    region: us-east-1\n    retention: 72h\n    retention-check-interval: 1h\n    snapshot-interval: 24h\n"
        "    validation-interval: 12h\n    sync-interval: 1s\n",
        {"/data/app.db": "s3://b/app?region=us-east-1"},
    ),
    "all from the environment, in quotes": (
        'dbs:\n  - path: "${DATA}/app.db"\n    replica:\n      type: s3\n      bucket: "${BUCKET}"\n      path: app\n'
        '      endpoint: "$ENDPOINT"\n      region: "${REGION}"\n      access-key-id: "${KEY_ID}"\n'
        '      secret-access-key: "${SECRET}"\n',
        {"/data/app.db": "s3://backups/app?endpoint=https://objects.example.com&region=eu-west-1"},
    ),
    "all from the environment, plain": (
        "dbs:\n  - path: $DATA/app.db\n    replica:\n      type: s3\n      bucket: $BUCKET\n      path: app\n"
        "      region: $REGION\n      sync-interval: $INTERVAL\n      force-path-style: $ON\n",
        {"/data/app.db": "s3://backups/app?region=eu-west-1&forcePathStyle=true"},
    ),
    "a boolean from the environment": (
        "socket:\n  enabled: ${ON}\n  path: /run/l.sock\ndbs:\n  - {path: /a, replica: {path: /r}}\n",
        {"/a": "file:///r"},
    ),
    "a number in quotes stays a text": (
        "dbs:\n  - path: /a\n    replica: {type: s3, bucket: '${DIGITS}', path: \"${DIGITS}\"}\n",
        {"/a": "s3://0123/0123"},
    ),
    "the process ID": (
        "dbs:\n  - {path: /a, replica: {url: 's3://b/x'}}\nexec: app --parent $PID\n",
        {"/a": "s3://b/x"},
    ),
    "MinIO on this machine": (
        "dbs:\n  - path: /data/db\n    replica:\n      type: s3\n      bucket: mybkt\n      path: db\n"
        "      endpoint: http://localhost:9000\n      access-key-id: minioadmin\n      secret-access-key: minioadmin\n",
        {"/data/db": "s3://mybkt/db?endpoint=http://localhost:9000"},
    ),
    "MinIO in the host of the URL": (
        "dbs:\n  - path: /data/db\n    replica:\n      url: s3://mybkt.localhost:9000/db\n",
        {"/data/db": "s3://mybkt/db?endpoint=http://localhost:9000"},
    ),
    "Cloudflare": (
        "dbs:\n  - path: /data/db\n    replica:\n      type: s3\n      bucket: b\n      path: db\n      region: auto\n"
        "      endpoint: https://0123456789abcdef.r2.cloudflarestorage.com\n      force-path-style: true\n",
        {"/data/db": "s3://b/db?endpoint=https://0123456789abcdef.r2.cloudflarestorage.com&region=auto"},
    ),
    "Backblaze": (
        "dbs:\n  - path: /data/db\n    replica:\n      url: s3://b.s3.us-west-000.backblazeb2.com/db\n",
        {"/data/db": "s3://b/db?endpoint=https://s3.us-west-000.backblazeb2.com&region=us-west-000"},
    ),
    "DigitalOcean": (
        "dbs:\n  - path: /data/db\n    replica:\n      url: s3://b.nyc3.digitaloceanspaces.com/db\n",
        {"/data/db": "s3://b/db?endpoint=https://nyc3.digitaloceanspaces.com&region=nyc3"},
    ),
    "an endpoint without a scheme": (
        "dbs:\n  - path: /data/db\n    replica: {type: s3, bucket: b, path: db, endpoint: s3.example.com}\n",
        {"/data/db": "s3://b/db?endpoint=https://s3.example.com"},
    ),
    "a self-signed server": (
        "dbs:\n  - path: /data/db\n    replica:\n      url: s3://b/db\n      endpoint: https://nas:9000\n"
        "      skip-verify: true\n",
        {"/data/db": "s3://b/db?endpoint=https://nas:9000&skipVerify=true"},
    ),
    "parameters in the URL": (
        "dbs:\n  - path: /data/db\n    replica:\n"
        "      url: s3://b/db?endpoint=https://nas&region=r&force-path-style=true&skipVerify=true&part-size=10485760\n",
        {"/data/db": "s3://b/db?endpoint=https://nas&region=r&skipVerify=true&partSize=10485760"},
    ),
    "storage class and encryption": (
        "dbs:\n  - path: /data/db\n    replica:\n      url: s3://b/db\n      storage-class: STANDARD_IA\n"
        "      sse-kms-key-id: alias/backups\n",
        {"/data/db": "s3://b/db?storageClass=STANDARD_IA&sseKmsKeyId=alias/backups"},
    ),
    "the size of parts": (
        "part-size: 16MB\nconcurrency: 2\ndbs:\n  - path: /data/db\n    replica:\n      url: s3://b/db\n"
        "      sign-payload: true\n      require-content-md5: false\n",
        {"/data/db": "s3://b/db?partSize=16000000&concurrency=2"},
    ),
    "several databases": (
        "dbs:\n  - path: /data/a.db\n    replica: {url: s3://b/a}\n  - path: /data/b.db\n    replica: {url: s3://b/b}\n"
        "  - path: /data/c.db\n    replica: {type: file, path: /mnt/c}\n",
        {"/data/a.db": "s3://b/a", "/data/b.db": "s3://b/b", "/data/c.db": "file:///mnt/c"},
    ),
    "anchors below x-": (
        "x-store: &store\n  type: s3\n  bucket: b\n  region: r\ndbs:\n  - path: /a\n    replica:\n      <<: *store\n"
        "      path: a\n  - path: /b\n    replica:\n      <<: *store\n      path: b\n",
        {"/a": "s3://b/a?region=r", "/b": "s3://b/b?region=r"},
    ),
    "anchors below a key of any name": (
        "defaults: &defaults\n  endpoint: https://e\n  region: r\nlists:\n  - &one {path: /a, replica: {url: s3://b/a}}\n"
        "dbs:\n  - *one\n  - path: /b\n    replica: {<<: *defaults, url: s3://b/b}\n",
        {"/a": "s3://b/a", "/b": "s3://b/b?endpoint=https://e&region=r"},
    ),
    "an anchor at the first replica": (
        "dbs:\n  - path: /a\n    replicas:\n      - &r\n        type: s3\n        bucket: b\n        path: a\n"
        "        snapshot-interval: 1h\n  - path: /b\n    replicas:\n      - <<: *r\n        path: b\n",
        {"/a": "s3://b/a", "/b": "s3://b/b"},
    ),
    "metrics and a program": (
        'addr: ":9090"\nexec: "node server.js --port 3000"\ndbs:\n  - {path: /a, replica: {path: /r}}\n',
        {"/a": "file:///r"},
    ),
    "a folded command": (
        "exec: >-\n  gunicorn\n  app:main\ndbs:\n  - {path: /a, replica: {path: /r}}\n",
        {"/a": "file:///r"},
    ),
    "levels and snapshots": (
        "levels:\n  - interval: 30s\n  - interval: 5m\n  - interval: 1h\nsnapshot:\n  interval: 24h\n"
        "  retention: 168h\n"
        "dbs:\n  - {path: /a, replica: {path: /r}}\n",
        {"/a": "file:///r"},
    ),
    "snapshots of a database": (
        "dbs:\n  - path: /a\n    snapshot: {interval: 1h, retention: 48h}\n    replica: {path: /r}\n",
        {"/a": "file:///r"},
    ),
    "empty sections": (
        "snapshot:\nlogging:\nlevels:\naddr:\ndbs:\n  - {path: /a, replica: {path: /r}}\n",
        {"/a": "file:///r"},
    ),
    "all that can be set at the top": (
        "l0-retention: 10m\nl0-retention-check-interval: 30s\nverify-compaction: true\nshutdown-sync-timeout: 10s\n"
        "shutdown-sync-interval: 500ms\nvalidation: {interval: 6h}\nretention: {enabled: true}\n"
        "logging: {level: debug, type: json, stderr: true, source: true}\n"
        "socket: {enabled: true, path: /run/l.sock, permissions: 0600}\n"
        "dbs:\n  - {path: /a, replica: {path: /r}}\n",
        {"/a": "file:///r"},
    ),
    "all that can be set for a database": (
        "dbs:\n  - path: /a\n    meta-path: /meta/a\n    monitor-interval: 1s\n    checkpoint-interval: 1m\n"
        "    busy-timeout: 5s\n    min-checkpoint-page-count: 1000\n    truncate-page-n: 121359\n"
        "    max-sync-wal-bytes: 1048576\n    restore-if-db-not-exists: true\n"
        "    replica: {path: /r, auto-recover: true, max-sync-ltx-files: 10, validation-interval: 1h}\n",
        {"/a": "file:///r"},
    ),
    "retention by the bucket": (
        "l0-retention: 0\nretention: {enabled: false}\ndbs:\n  - {path: /a, replica: {url: s3://b/a}}\n",
        {"/a": "s3://b/a"},
    ),
    "a heartbeat": (
        "heartbeat-url: https://hc-ping.example/uuid\nheartbeat-interval: 5m\n"
        "dbs:\n  - {path: /a, replica: {path: /r}}\n",
        {"/a": "file:///r"},
    ),
    "the settings of all replicas at the top": (
        "region: r\nendpoint: https://e\nbucket: b\nsync-interval: 5s\nforce-path-style: false\n"
        "dbs:\n  - {path: /a, replica: {type: s3, path: a}}\n  - {path: /b, replica: {type: s3, path: b, region: q}}\n",
        {
            "/a": "s3://b/a?endpoint=https://e&region=r&forcePathStyle=false",
            "/b": "s3://b/b?endpoint=https://e&region=q&forcePathStyle=false",
        },
    ),
    "a path with the scheme of SQLite": (
        "dbs:\n  - path: sqlite:///data/app.db\n    replica: {url: s3://b/a}\n",
        {"/data/app.db": "s3://b/a"},
    ),
    "a URL of a file": (
        "dbs:\n  - path: /a\n    replica: {url: file:///mnt/backup/a}\n",
        {"/a": "file:///mnt/backup/a"},
    ),
    "comments, a beginning of a document, quotes": (
        "---\n# our backups\ndbs: # all of them\n  - path: '/a'   # the first\n    replica:\n      url: \"s3://b/a\"\n...\n",
        {"/a": "s3://b/a"},
    ),
    "the ends of lines of Windows": (
        "dbs:\r\n  - path: /a\r\n    replica:\r\n      url: s3://b/a\r\n",
        {"/a": "s3://b/a"},
    ),
    "JSON": ('{"dbs": [{"path": "/a", "replica": {"url": "s3://b/a"}}]}', {"/a": "s3://b/a"}),
    "yes and no": (
        "dbs:\n  - path: /a\n    replica: {url: s3://b/a, force-path-style: yes, skip-verify: no}\n",
        {"/a": "s3://b/a?forcePathStyle=true"},
    ),
    "a deep path with a slash at its beginning": (
        "dbs:\n  - path: /a\n    replica: {type: s3, bucket: b, path: /one/two/}\n",
        {"/a": "s3://b/one/two"},
    ),
    "a variable in a comment, a dollar without a name": (
        "# $NOT_THERE\ndbs:\n  - path: /a\n    replica: {type: file, path: '/r/$ 5'}\n",
        {"/a": "file:///r/$ 5"},
    ),
    "Kubernetes, with the namespace from the environment": (
        "dbs:\n  - path: ${DATA}/app.db\n    replicas:\n      - type: s3\n        endpoint: ${ENDPOINT}\n"
        "        bucket: ${BUCKET}\n        path: prod/${REGION}/app\n        retention: 24h\n"
        "        skip-verify: false\n",
        {"/data/app.db": "s3://backups/prod/eu-west-1/app?endpoint=https://objects.example.com"},
    ),
    "a server for models": (
        "mcp-addr: ':3001'\ndbs:\n  - {path: /a.db, replica: {path: /r}}\n",
        {"/a.db": "file:///r"},
    ),
}
"""By what is special: the text, and for each database the URL of its replica."""

DIFFERENT: dict[str, tuple[str, bool, bool, str]] = {
    "another kind of store": (
        "dbs:\n  - {path: /a, replica: {type: gs, bucket: b, path: a}}\n", True, False, "type gs is not supported"
    ),
    "a misspelt key": (
        "dbs:\n  - {path: /a, replica: {url: s3://b/a, sync_interval: 1s}}\n", True, False, "write sync-interval"
    ),
    "no database": ("addr: ':9090'\n", True, False, "no database is configured"),
    "a shell in the command": (
        "exec: a && b\ndbs:\n  - {path: /a, replica: {path: /r}}\n", True, False, "write sh -c"
    ),
    "the same database twice": (
        "dbs:\n  - {path: /a, replica: {path: /r}}\n  - {path: /a, replica: {path: /s}}\n", False, False, "named twice"
    ),
    "an empty variable instead of a URL": (
        "dbs:\n  - {path: /a, replica: {type: file, path: '${NOT_THERE}'}}\n", False, False, "(NOT_THERE is not set)"
    ),
    "a default in the style of a shell": (
        "dbs:\n  - {path: /a, replica: {path: '${NOT_THERE:-/r}'}}\n", False, False,
        "defaults after :- are not expanded",
    ),
    "two replicas": ("dbs:\n  - {path: /a, replicas: [{path: /r}, {path: /s}]}\n", False, False, "has one replica"),
    "no replica": ("dbs:\n  - path: /a\n", False, False, "has no replica"),
    "encryption with age": (
        "dbs:\n  - {path: /a, replica: {path: /r, age: {recipients: [age1x]}}}\n", False, False,
        "would not be encrypted",
    ),
    "a URL as path": ("dbs:\n  - {path: /a, replica: {path: s3://b/a}}\n", False, False, "name it as url"),
    "not YAML": ("dbs:\n\t- path: /a\n", False, False, "is not YAML"),
    "a snapshot every 0 s": (
        "snapshot: {interval: 0s}\ndbs:\n  - {path: /a, replica: {path: /r}}\n", False, False, "is zero"
    ),
    "days": (
        "snapshot: {retention: 7d}\ndbs:\n  - {path: /a, replica: {path: /r}}\n", False, True, ""
    ),
    "a value that would break the text": (
        "access-key-id: k\nsecret-access-key: $SECRET\ndbs:\n  - {path: /a, replica: {url: s3://b/a}}\n", False, True,
        "",
    ),
}  # fmt: skip
"""By what is special: the text, whether Litestream and whether we accept it, and what we say."""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NOT_THERE", raising=False)


Read = Callable[[str], tuple[dict[str, str] | None, dict[str, str] | None, str]]


@pytest.fixture
def read(environment: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Read:
    """Reads a text by both: the databases with their kinds of store, ours with URLs, and what we say on stderr."""

    def both(text: str) -> tuple[dict[str, str] | None, dict[str, str] | None, str]:
        file = tmp_path / "litestream.yml"
        file.write_bytes(text.encode())
        theirs = run_litestream("databases", "-json", "-config", file)
        capsys.readouterr()
        code = main.run(["databases", "-json", "-config", str(file)])
        told = capsys.readouterr()
        return (
            {each["path"]: each["replica"] for each in json.loads(theirs.stdout)} if theirs.code == 0 else None,
            {each["path"]: each["url"] for each in json.loads(told.out)} if code == 0 else None,
            told.err,
        )

    return both


def test_files_of_the_usual_shapes_are_accepted_and_mean_the_same(read: Read) -> None:
    assert len(SHAPES) >= 40
    for what, (text, urls) in SHAPES.items():
        theirs, ours, said = read(text)
        assert ours == urls, (what, said)
        assert theirs == {path: url.partition("://")[0] for path, url in urls.items()}, what
        old = [
            key for key in ("retention: ", "snapshot-interval: ", "retention-check-interval: ") if f"    {key}" in text
        ]
        assert said.count("is of Litestream 0.3: write instead") >= len(old) * ("replicas:" in text), what


def test_files_that_only_one_of_both_accepts_are_known_and_what_we_refuse_is_explained(read: Read) -> None:
    for what, (text, theirs_accept, ours_accept, message) in DIFFERENT.items():
        theirs, ours, said = read(text)
        assert (theirs is not None, ours is not None) == (theirs_accept, ours_accept), (what, said)
        assert message in said, what
        if not ours_accept:
            assert said.count("\n") == 1, what
