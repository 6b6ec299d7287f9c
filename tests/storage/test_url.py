"""Replica URLs: Litestream's forms, no secrets, and errors with the next step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.errors import UsageError
from litereplica.storage.s3_options import S3Options
from litereplica.storage.url import ReplicaURL, basename, parse_url, redacted


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///var/lib/app.db", ReplicaURL("file", "/var/lib/app.db")),
        ("file:///var//lib/./x/../app.db/", ReplicaURL("file", "/var/lib/app.db")),
        ("file:////two/slashes", ReplicaURL("file", "/two/slashes")),
        ("file:///with%20percent and space", ReplicaURL("file", "/with%20percent and space")),
        ("FILE:///var/x", ReplicaURL("file", "/var/x")),
        ("s3://bucket", ReplicaURL("s3", "", bucket="bucket")),
        ("s3://bucket/", ReplicaURL("s3", "", bucket="bucket")),
        ("s3://bucket/a/b.db", ReplicaURL("s3", "a/b.db", bucket="bucket")),
        ("s3://bucket//a/../b.db/", ReplicaURL("s3", "b.db", bucket="bucket")),
        ("s3://bucket/a%20b%23", ReplicaURL("s3", "a b#", bucket="bucket")),
        ("s3://bucket/a?region=eu-1", ReplicaURL("s3", "a", bucket="bucket", region="eu-1")),
        ("s3://bucket/a?forcePathStyle=true", ReplicaURL("s3", "a", bucket="bucket", force_path_style=True)),
        ("s3://bucket/a?force-path-style=1", ReplicaURL("s3", "a", bucket="bucket", force_path_style=True)),
        ("s3://bucket/a?endpoint=&region=", ReplicaURL("s3", "a", bucket="bucket")),
        (
            "s3://b/a?endpoint=https://s3.example.com/&force-path-style=false",
            ReplicaURL("s3", "a", bucket="b", endpoint="https://s3.example.com"),
        ),
        (
            "s3://b/a?endpoint=http%3A%2F%2Flocalhost%3A9000",
            ReplicaURL("s3", "a", bucket="b", endpoint="http://localhost:9000", force_path_style=True),
        ),
        ("s3://b.s3.eu-west-1.amazonaws.com/a", ReplicaURL("s3", "a", bucket="b", region="eu-west-1")),
        (
            "s3://b.localhost:9000/a?region=r&requireContentMD5=true",
            ReplicaURL("s3", "a", bucket="b", endpoint="http://localhost:9000", region="r", force_path_style=True),
        ),
        (
            "s3://b/a?skip-verify=1&signPayload=false&storage-class=COLD&part-size=16MiB&concurrency=2&sseKmsKeyId=k",
            ReplicaURL("s3", "a", bucket="b", options=S3Options(True, False, "COLD", 16 << 20, 2, "k")),
        ),
        (
            "s3://b/a?sseCustomerKeyPath=/etc/key&sseCustomerAlgorithm=AES256",
            ReplicaURL("s3", "a", bucket="b", options=S3Options(sse_customer_key_path="/etc/key")),
        ),
    ],
)
def test_a_url_is_parsed_as_litestream_does(url: str, expected: ReplicaURL) -> None:
    assert parse_url(url) == expected
    assert parse_url(str(expected)) == expected


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("localhost:9000", "http://localhost:9000"),
        ("minio.localhost", "http://minio.localhost"),
        ("127.0.0.1:8333", "http://127.0.0.1:8333"),
        ("[::1]:8333", "http://[::1]:8333"),
        ("s3.example.com", "https://s3.example.com"),
        ("10.0.0.1:9000", "http://10.0.0.1:9000"),
        ("172.31.0.1:9000", "http://172.31.0.1:9000"),
        ("172.32.0.1:9000", "https://172.32.0.1:9000"),
        ("nas.local:9000", "http://nas.local:9000"),
        ("[fd00::1]:9000", "http://[fd00::1]:9000"),
        ("localhost.example.com", "https://localhost.example.com"),
        ("http://s3.example.com", "http://s3.example.com"),
    ],
)
def test_an_endpoint_without_a_scheme_is_https_except_on_this_machine_and_in_private_networks(
    endpoint: str, expected: str
) -> None:
    assert parse_url(f"s3://b/p?endpoint={endpoint}").endpoint == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "not a URL"),
        ("/var/lib/app.db", "not a URL"),
        ("gs://bucket/path", "'gs' is not supported"),
        ("file://relative/path", "not an absolute path"),
        ("file://", "not an absolute path"),
        ("file:///", "names no directory"),
        ("file:///x?region=eu", "no parameter 'region'"),
        ("s3://", "names no bucket"),
        ("s3:///path", "names no bucket"),
        ("s3://localhost:9000/bucket", "not a bucket name"),
        ("s3://s3.eu-west-1.amazonaws.com/bucket/path", "not a bucket name"),
        ("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint", "has no ARN of an access point"),
        ("s3://arn:aws:s3:eu-west-1:12:accesspoint/name/path", "has no ARN of an access point"),
        ("s3://arn:aws:s3:eu/x@y:123456789012:accesspoint/name/path", "has no ARN of an access point"),
        ("s3://bucket/path#fragment", "no part after '#'"),
        ("s3://bucket/path?colour=red", "'colour' is not supported"),
        ("s3://bucket/path?skipVerify=maybe", "'skipVerify' is neither true nor false"),
        ("s3://bucket/path?partSize=1", "part-size is not between 5 MiB and 5 GiB"),
        ("s3://bucket/path?concurrency=-1", "concurrency is not a number"),
        ("s3://bucket/path?sseCustomerKey=x", "a URL must not contain a key"),
        ("s3://bucket/path?sseCustomerAlgorithm=x", "sse-customer-algorithm is not AES256"),
        ("s3://bucket/path?sseKmsKeyId=x&sseCustomerKeyPath=y", "SSE-KMS and SSE-C exclude each other"),
        ("s3://bucket/path?endpoint=http://x&sseCustomerKeyPath=y", "would be sent over plain http"),
        ("s3://bucket/path?forcePathStyle=maybe", "'forcePathStyle' is neither true nor false"),
        ("s3://bucket/path?region=a&region=b", "'region' is given twice"),
        ("s3://bucket/path?forcePathStyle=true&force-path-style=false", "given twice"),
        ("s3://bucket/path?endpoint=ftp://x", "neither http nor https"),
        ("s3://bucket/path?endpoint=http://", "names no server"),
        ("s3://bucket/path?endpoint=host:port", "not a URL"),
        ("s3://bucket/path?endpoint=[::1", "not a URL"),
        ("s3://bucket/%ff%00", "not UTF-8 text"),
        ("s3://[bucket/path", "not a URL"),
        ("s3://bucket/a\nb", "control character"),
    ],
)
def test_a_wrong_url_is_refused_with_the_next_step(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_url(url)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:hunter2@bucket/path",
        "s3://key:hunt/er2@bucket/path",
        "s3://key:hunter2%40@bucket/path",
        "s3://key:hunter2%40bucket/path",
        "s3://key:hunter2?@bucket/path",
        "s3://bucket/path?endpoint=http://key:hunter2@host",
        "s3://bucket/path?endpoint=http%3A%2F%2Fkey%3Ahunter2%40host",
        "s3://bucket/path?endpoint=key:hunter2@host",
        "https://key:hunter2@host/path",
        "file://key:hunter2@host/path",
        "key:hunter2@host",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_url(url)
    assert "hunt" not in str(caught.value)
    assert "hunt" not in redacted(url)


def test_credentials_are_sent_to_the_environment() -> None:
    with pytest.raises(UsageError, match="AWS_ACCESS_KEY_ID"):
        parse_url("s3://key:secret@bucket/path")


def parsed_or_refused(url: str) -> ReplicaURL | UsageError:
    try:
        return parse_url(url)
    except UsageError as exc:
        return exc


@given(
    st.sampled_from(["", "s3://", "file://", "s3://b/", "s3://b/p?", "s3://b/p?endpoint=", "s3://k:secret@"]),
    st.text(),
)
def test_whatever_is_typed_is_parsed_or_refused(beginning: str, text: str) -> None:
    outcome = parsed_or_refused(beginning + text)
    if isinstance(outcome, ReplicaURL):
        assert parse_url(str(outcome)) == outcome
    else:
        assert "\n" not in str(outcome)
        assert "secret" not in str(outcome)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/backups/app.db?region=x", "app.db"),
        ("file:///srv/replica/app.db/", "app.db"),
        ("s3://bucket", "bucket"),
    ],
)
def test_the_basename_is_the_last_component(url: str, name: str) -> None:
    assert basename(url) == name


@pytest.mark.parametrize(
    ("url", "prefix", "below"),
    [
        ("file:///srv", "", "file:///srv"),
        ("file:///srv", "a/b c.db", "file:///srv/a/b c.db"),
        ("s3://bucket", "", "s3://bucket"),
        ("s3://bucket", "a.db", "s3://bucket/a.db"),
        ("s3://bucket/x?region=eu", "a b.db", "s3://bucket/x/a%20b.db?region=eu"),
    ],
)
def test_url_below_another_keeps_its_parameters(url: str, prefix: str, below: str) -> None:
    assert str(parse_url(url).below(prefix)) == below
