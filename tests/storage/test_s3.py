"""S3 keeps the contract on a real store; Litestream's conventions; what boto3 is asked to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from litereplica.errors import AccessDenied, BucketNotFound, PreconditionFailed, StorageError, UsageError
from litereplica.storage import s3_upload
from litereplica.storage.base import Storage
from litereplica.storage.open import open_storage
from litereplica.storage.s3 import S3Storage
from litereplica.storage.s3_connection import RENEW_INTERVAL_S, Connection, look_up_again
from litereplica.storage.s3_direct import DirectS3Storage
from litereplica.storage.url import parse_url
from litereplica.testing.back_doors import S3Door, Subject
from litereplica.testing.conformance import StorageConformance
from litereplica.testing.listing_conformance import keys_of
from litereplica.testing.seaweed import SeaweedServer

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


@pytest.fixture
async def subject(
    seaweed: SeaweedServer, bucket: str, client: S3Client, credentials: None, fresh_path: str
) -> AsyncIterator[Subject]:
    async with S3Storage(parse_url(seaweed.url(bucket, fresh_path))) as storage:
        yield Subject(storage, S3Door(client, bucket, fresh_path + "/"))


class TestS3(StorageConformance):
    """The fixture `subject` of this module."""


async def test_the_time_is_kept_as_litestream_keeps_it(subject: Subject, client: S3Client, bucket: str) -> None:
    storage, door = subject.storage, subject.door
    assert isinstance(door, S3Door)
    for modified_ms, text in [
        (1_700_000_000_120, "2023-11-14T22:13:20.12Z"),
        (1_700_000_000_000, "2023-11-14T22:13:20Z"),
        (1, "1970-01-01T00:00:00.001Z"),
    ]:
        await storage.put("k", b"x", modified_ms=modified_ms)
        stored = client.head_object(Bucket=bucket, Key=door.base + "k")
        assert stored["Metadata"] == {"litestream-timestamp": text}


@pytest.mark.parametrize(
    ("text", "modified_ms"),
    [
        ("2023-11-14T22:13:20.123456789Z", 1_700_000_000_123),
        ("2023-11-14T23:13:20.5+01:00", 1_700_000_000_500),
    ],
)
async def test_a_time_that_litestream_wrote_is_read(
    subject: Subject, client: S3Client, bucket: str, text: str, modified_ms: int
) -> None:
    assert isinstance(subject.door, S3Door)
    key = subject.door.base + "k"
    client.put_object(Bucket=bucket, Key=key, Body=b"", Metadata={"litestream-timestamp": text})
    assert (await subject.storage.head("k")).modified_ms == modified_ms


@pytest.mark.parametrize("text", ["", "yesterday", "2023-11-14T22:13:20", "9999999"])
async def test_a_time_that_is_none_counts_as_absent(subject: Subject, client: S3Client, bucket: str, text: str) -> None:
    assert isinstance(subject.door, S3Door)
    key = subject.door.base + "k"
    client.put_object(Bucket=bucket, Key=key, Body=b"", Metadata={"litestream-timestamp": text})
    listed = (await subject.storage.list("k"))[0].modified_ms
    assert abs((await subject.storage.head("k")).modified_ms - listed) <= 1000


def pending_uploads(client: S3Client, bucket: str) -> int:
    return len(client.list_multipart_uploads(Bucket=bucket).get("Uploads", []))


async def test_a_refused_upload_in_parts_is_aborted(
    subject: Subject, client: S3Client, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_upload, "MULTIPART_BYTES", 1000)
    source = tmp_path / "source"
    source.write_bytes(b"x" * 5000)
    subject.door.write("k", b"there")
    with pytest.raises(PreconditionFailed):
        await subject.storage.put_if_absent("k", source)
    assert subject.door.read("k") == b"there"
    assert pending_uploads(client, bucket) == 0


async def test_a_cancelled_upload_in_parts_is_aborted(
    subject: Subject, client: S3Client, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_upload, "MULTIPART_BYTES", 1000)
    source = tmp_path / "source"
    source.write_bytes(b"x" * 5000)
    with trio.CancelScope() as scope:
        real = s3_upload._part_upload

        def cancelling(*arguments: Any) -> Any:
            scope.cancel()
            return real(*arguments)

        monkeypatch.setattr(s3_upload, "_part_upload", cancelling)
        await subject.storage.put("k", source)
    assert scope.cancelled_caught
    assert subject.door.read("k") is None
    assert pending_uploads(client, bucket) == 0


async def test_a_file_that_shrinks_while_it_is_uploaded_is_refused(
    subject: Subject, client: S3Client, bucket: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100)
    storage = subject.storage
    assert isinstance(storage, S3Storage)

    async def run(doing: str, action: Callable[[S3Client], Any]) -> Any:
        return await storage._run(doing, action, key="k")

    assert isinstance(subject.door, S3Door)
    where = {"Bucket": bucket, "Key": subject.door.base + "k"}
    target = s3_upload.Target(where=where, metadata={}, condition={})
    with pytest.raises(StorageError, match="changed while it was uploaded"):
        await s3_upload.upload_in_parts(source, 101, target, run)
    assert subject.door.read("k") is None
    assert pending_uploads(client, bucket) == 0


@pytest.mark.parametrize(
    ("size", "parts"), [(1, 1), (16 << 20, 1), (1 << 30, 64), (156 << 30, 9984), (1 << 40, 9987), (5 << 40, None)]
)
def test_no_file_has_too_many_parts(size: int, parts: int | None) -> None:
    length = s3_upload.part_size(size)
    count = -(-size // length)
    assert count <= s3_upload.MAX_PARTS
    assert parts is None or count == parts
    assert length % (1 << 20) == 0


async def test_directory_markers_are_not_objects(subject: Subject, client: S3Client, bucket: str) -> None:
    assert isinstance(subject.door, S3Door)
    client.put_object(Bucket=bucket, Key=subject.door.base + "0000/", Body=b"")
    subject.door.write("0000/k", b"x")
    assert await keys_of(subject.storage, "") == ["0000/k"]


async def test_a_url_without_a_path_is_the_whole_bucket(
    seaweed: SeaweedServer, client: S3Client, credentials: None
) -> None:
    bucket = seaweed.create_bucket()
    async with S3Storage(parse_url(seaweed.url(bucket))) as storage:
        await storage.put("0000/k", b"x")
        assert await keys_of(storage, "") == ["0000/k"]
    assert client.get_object(Bucket=bucket, Key="0000/k")["Body"].read() == b"x"


async def test_litestreams_variables_are_used_when_awss_are_not_set(
    seaweed: SeaweedServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweed.credentials().items():
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name.replace("AWS_", "LITESTREAM_"), value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    async with S3Storage(parse_url(seaweed.url(bucket, "litestream"))) as storage:
        await storage.put("k", b"x")
        assert (await storage.get("k")).data == b"x"


# What goes wrong with the real store


async def everything_fails(storage: Storage, kind: type[StorageError]) -> list[StorageError]:
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: storage.get("0000/k"),
        lambda: storage.list("0000/"),
        lambda: storage.put("0000/k", b"x"),
        lambda: storage.put_if_absent("0000/k", b"x"),
    ]
    errors = []
    for call in calls:
        with pytest.raises(StorageError) as caught:
            await call()
        assert type(caught.value) is kind
        assert caught.value.hint
        assert "\n" not in str(caught.value)
        errors.append(caught.value)
    return errors


async def test_a_missing_bucket(seaweed: SeaweedServer, credentials: None) -> None:
    async with S3Storage(parse_url(seaweed.url("no-such-bucket", "app.db"))) as storage:
        errors = await everything_fails(storage, BucketNotFound)
        assert "no-such-bucket" in str(errors[0])


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
async def test_wrong_credentials_are_named_and_not_shown(
    seaweed: SeaweedServer, bucket: str, credentials: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "wrong-and-private")
    async with S3Storage(parse_url(seaweed.url(bucket, "app.db"))) as storage:
        for error in await everything_fails(storage, AccessDenied):
            assert "AWS_ACCESS_KEY_ID" in (error.hint or "")
            assert "wrong-and-private" not in str(error)
            assert seaweed.secret_key not in str(error)


async def test_no_credentials(
    seaweed: SeaweedServer, bucket: str, credentials: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    async with S3Storage(parse_url(seaweed.url(bucket, "app.db"))) as storage:
        await everything_fails(storage, AccessDenied)


async def test_an_unknown_profile(
    seaweed: SeaweedServer, bucket: str, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    async with S3Storage(parse_url(seaweed.url(bucket, "app.db"))) as storage:
        await everything_fails(storage, AccessDenied)


IMPORTS_NOTHING_EARLY = """
import sys
from litereplica.storage.open import open_storage
storage = open_storage("s3://bucket/path?endpoint=127.0.0.1:1")
print(sorted(name for name in ("boto3", "botocore", "urllib3", "litereplica.storage.http_pool") if name in sys.modules))
"""


def test_neither_import_nor_open_storage_imports_a_client() -> None:
    child = subprocess.run([sys.executable, "-c", IMPORTS_NOTHING_EARLY], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"


# Credentials that change while the program runs


@pytest.mark.parametrize("backend", [S3Storage, DirectS3Storage], ids=["boto3", "direct"])
async def test_credentials_that_are_replaced_in_their_file_are_picked_up(
    seaweed: SeaweedServer,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    backend: type[S3Storage] | type[DirectS3Storage],
) -> None:
    for name in seaweed.credentials():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    def write(secret: str) -> None:
        file.write_text(f"[default]\naws_access_key_id = {seaweed.access_key}\naws_secret_access_key = {secret}\n")

    write("no-longer-right")
    async with backend(parse_url(seaweed.url(bucket, "rotated"))) as storage:
        with pytest.raises(AccessDenied):
            await storage.put("k", b"x")
        monkeypatch.setattr("litereplica.storage.s3_connection.RENEW_INTERVAL_S", 0.0)
        write(seaweed.secret_key)
        await storage.put("k", b"x")
        assert (await storage.get("k")).data == b"x"


def test_refused_credentials_are_looked_up_again_once_in_a_while_and_not_by_each_request() -> None:
    now = 100.0
    made: list[object] = []

    def connect() -> object:
        made.append(object())
        return made[-1]

    connection = Connection(connect, clock=lambda: now)
    first = connection.client()
    assert connection.renew(first)
    second = connection.client()
    assert second is not first
    assert connection.renew(first), "another request has renewed them already"
    assert not connection.renew(second)
    now += RENEW_INTERVAL_S
    assert connection.renew(second)
    assert connection.client() is not second
    assert len(made) == 3


@pytest.mark.logs("cannot look up the credentials again, those of before stay in use: not now")
def test_credentials_are_looked_up_again_on_demand_and_those_of_before_stay_in_use_if_that_fails() -> None:
    made: list[object] = []
    works = True

    def connect() -> object:
        if not works:
            raise OSError("not now")
        made.append(object())
        return made[-1]

    connection, unused = Connection(connect), Connection(connect)
    first = connection.client()
    look_up_again()
    second = connection.client()
    assert second is not first
    assert connection.client() is second
    works = False
    look_up_again()
    assert connection.client() is second
    works = True
    assert connection.client() is second, "asked for once"
    look_up_again()
    assert connection.client() is made[2]
    assert unused.client() is made[3]


DIRECT = "litereplica.storage.s3_direct"

USES_THE_STORE = """
import sys
import trio
from litereplica.storage.base import ByteRange
from litereplica.storage.open import open_storage
async def use(url):
    async with open_storage(url) as storage:
        await storage.put("a/k", b"0123456789")
        print((await storage.get("a/k", ByteRange(2, 4))).data, len(await storage.list("a/")))
trio.run(use, sys.argv[1])
print(sorted(name for name in ("boto3", "botocore", "litereplica.storage.s3_direct") if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("client", "imported"), [("", [DIRECT]), ("direct", [DIRECT]), ("boto3", ["boto3", "botocore"])]
)
def test_the_client_is_chosen_by_a_variable_and_the_other_is_not_imported(
    seaweed: SeaweedServer, bucket: str, tmp_path: Path, client: str, imported: list[str]
) -> None:
    environment = seaweed.environment() | {
        "LITEREPLICA_S3_CLIENT": client,
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }
    command = [sys.executable, "-c", USES_THE_STORE, seaweed.url(bucket, "chosen")]
    child = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert child.stdout.splitlines() == ["b'23' 1", str(imported)]


def test_a_client_that_is_unknown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITEREPLICA_S3_CLIENT", "curl")
    with pytest.raises(UsageError, match="LITEREPLICA_S3_CLIENT"):
        open_storage("s3://bucket/path")
