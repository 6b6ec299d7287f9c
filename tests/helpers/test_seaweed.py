"""The real S3 store that other tests stand on."""

from __future__ import annotations

import subprocess

import pytest

from litereplica.testing.seaweed import SeaweedServer
from tests.conftest import S3Bucket


def test_a_fresh_bucket_holds_what_is_put(s3_bucket: S3Bucket) -> None:
    with s3_bucket.server.client() as client:
        client.put_object(Bucket=s3_bucket.name, Key="a/b", Body=b"hello")
        assert client.get_object(Bucket=s3_bucket.name, Key="a/b")["Body"].read() == b"hello"


def test_child_processes_get_the_credentials_and_no_foreign_certificates(
    seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    child = subprocess.run(["env"], env=seaweed.environment(), capture_output=True, text=True, check=True)
    variables = dict(line.split("=", 1) for line in child.stdout.splitlines() if "=" in line)
    assert variables["AWS_ACCESS_KEY_ID"] == seaweed.access_key
    assert not {"AWS_CA_BUNDLE", "SSL_CERT_FILE"} & variables.keys()
