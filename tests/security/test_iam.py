"""The policies of deploy/iam: each allows what real runs of its role ask of a real store, no less and no more."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import urllib.parse
from collections.abc import Callable
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from litereplica.errors import ExitCode
from litereplica.storage.s3_upload import MULTIPART_BYTES
from litereplica.testing.mounts import MountedReplica, litereplica_binary
from litereplica.testing.s3_proxy import Exchange, Misbehaviour, S3Proxy, Trouble, s3_proxy
from tests.conftest import S3Bucket

POLICIES = Path(__file__).parents[2] / "deploy" / "iam"
PREFIX = "tenants/a"
PART = 5 << 20


class Access(NamedTuple):
    """What AWS checks for a request: an action on a bucket (`key` is None) or an object; the prefix of a listing."""

    action: str
    key: str | None
    prefix: str | None


def accesses(exchange: Exchange) -> list[Access]:
    """What a request needs. A GET of a missing object is 404 only for those who may list: else it is 403."""
    query = dict(urllib.parse.parse_qsl(exchange.query, keep_blank_values=True))
    key = urllib.parse.unquote(exchange.path).split("/", 2)[2] if exchange.path.count("/") > 1 else ""
    match exchange.method:
        case "GET" if not key and "list-type" in query:
            return [Access("s3:ListBucket", None, query.get("prefix"))]
        case "GET" | "HEAD" if key and not query:
            return [Access("s3:GetObject", key, None), Access("s3:ListBucket", None, None)]
        case "PUT" if key and set(query) <= {"partNumber", "uploadId"}:
            return [Access("s3:PutObject", key, None)]
        case "POST" if key and ("uploads" in query or "uploadId" in query):
            return [Access("s3:PutObject", key, None)]
        case "DELETE" if key and "uploadId" in query:
            return [Access("s3:AbortMultipartUpload", key, None)]
        case "DELETE" if key and not query:
            return [Access("s3:DeleteObject", key, None)]
        case "POST" if not key and "delete" in query:
            body = exchange.body.decode()
            keys = [each.split("</Key>")[0] for each in body.split("<Key>")[1:]]
            return [Access("s3:DeleteObject", each, None) for each in keys]
    raise AssertionError(f"{exchange.method} {exchange.path}?{exchange.query}: which action is this?")


def allowing(policy: dict[str, Any], bucket: str, access: Access) -> str | None:
    """The name of the statement that allows an access; None if none does."""
    resource = f"arn:aws:s3:::{bucket}" + ("" if access.key is None else f"/{access.key}")
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        wanted = [each for values in statement.get("Condition", {}).values() for each in values["s3:prefix"]]
        assert set(statement.get("Condition", {})) <= {"StringLikeIfExists"}
        fits = not wanted or access.prefix is None or any(fnmatchcase(access.prefix, each) for each in wanted)
        if access.action in statement["Action"] and fnmatchcase(resource, statement["Resource"]) and fits:
            return str(statement["Sid"])
    return None


def require_exact(name: str, bucket: str, seen: set[Access]) -> None:
    text = (POLICIES / f"{name}.json").read_text()
    policy = json.loads(text.replace("BUCKET", bucket).replace("PREFIX", PREFIX))
    refused = sorted(map(str, (each for each in seen if allowing(policy, bucket, each) is None)))
    assert refused == []
    granted = {(each["Sid"], action) for each in policy["Statement"] for action in each["Action"]}
    used = {(allowing(policy, bucket, each), each.action) for each in seen}
    assert granted == used, f"{name} grants what nothing needs"


def command(*arguments: str | Path, code: int = ExitCode.OK) -> None:
    done = subprocess.run([litereplica_binary(), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr


def fail_a_part(exchange: Exchange) -> Misbehaviour | None:
    is_part = exchange.method == "PUT" and "partNumber" in exchange.query
    return Misbehaviour(Trouble.STATUS, status=400) if is_part else None


def write(url: str, directory: Path, proxy: S3Proxy, watch: Callable[[Exchange], None]) -> None:
    """All that a writer does: takes the lease, publishes whole and in parts, gives an upload up, merges, deletes."""
    database = directory / "app.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as client:
        client.executescript("PRAGMA journal_mode=wal; CREATE TABLE t (x); INSERT INTO t VALUES (1)")
        command("replicate", database, url, "--once")
        client.execute("INSERT INTO t VALUES (randomblob(?))", (MULTIPART_BYTES + 1,))

        def plan(exchange: Exchange) -> Misbehaviour | None:
            watch(exchange)
            return fail_a_part(exchange)

        watching, proxy.plan = proxy.plan, plan
        command("replicate", database, url, "--once", code=ExitCode.STORE)
        proxy.plan = watching
        command("replicate", database, url, "--once", "--force-snapshot", "--enforce-retention")
    command("compact", url, "--level", "1")
    command("snapshot", url)


def read(url: str, directory: Path) -> None:
    """All that readers do."""
    command("restore", url, "-o", directory / "restored.db")
    for each in ("verify", "history", "databases"):
        command(each, url)
    with MountedReplica(url, directory / "mount") as mount, closing(sqlite3.connect(mount.path)) as client:
        assert client.execute("SELECT count(*) FROM t").fetchone() == (2,)


@pytest.mark.slow
def test_policies_allow_what_their_role_does_and_nothing_else(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    with s3_proxy(s3_bucket.server) as proxy:
        url = f"{proxy.url(s3_bucket.name, f'{PREFIX}/app.db')}&part-size={PART >> 20}MiB"
        for role in ("writer", "reader"):
            seen: set[Access] = set()

            def watch(exchange: Exchange, seen: set[Access] = seen) -> None:
                seen.update(accesses(exchange))

            proxy.plan = watch
            if role == "writer":
                write(url, tmp_path, proxy, watch)
            else:
                read(url, tmp_path)
            for name in (role, f"{role}-of-prefix"):
                require_exact(name, s3_bucket.name, seen)


def test_policy_of_a_prefix_allows_nothing_beside_it() -> None:
    for role in ("reader", "writer"):
        policy = json.loads((POLICIES / f"{role}-of-prefix.json").read_text().replace("PREFIX", PREFIX))
        for access in (
            Access("s3:GetObject", "tenants/ab/x", None),
            Access("s3:PutObject", "x", None),
            Access("s3:ListBucket", None, ""),
            Access("s3:ListBucket", None, "tenants/ab"),
            Access("s3:ListBucket", None, "tenants/"),
        ):
            assert allowing(policy, "BUCKET", access) is None, access
