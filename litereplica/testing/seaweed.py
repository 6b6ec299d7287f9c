"""A real S3 store on loopback: SeaweedFS, started and stopped by the tests.

Owns the server's process, ports and credentials. Data lies in the directory it is given. The process ends
with `stop` (or `with`), and with the test process itself if that is killed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

START_DEADLINE_S = 60.0
"""A busy machine of two cores takes up to some 10 s; an idle one 2 s."""
START_ATTEMPTS = 3
"""A free port can be taken by another process before the server binds it."""
PORT_NAMES = ("master", "volume", "filer", "s3")
REGION = "us-east-1"

_TLS_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class SeaweedServer:
    """One SeaweedFS server with one administrator identity.

    >>> with SeaweedServer(tmp_path) as server:
    ...     server.create_bucket("b")
    ...     server.url("b", "app.db")  # s3://b/app.db?endpoint=http://127.0.0.1:…&region=…&forcePathStyle=true
    """

    access_key = "litereplica-test-key"
    secret_key = "litereplica-test-secret"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}
        self._numbers = itertools.count(1)

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:<port>` of the S3 interface."""
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def pid(self) -> int:
        """The server's process, for tests that stop and continue it."""
        assert self._process is not None
        return self._process.pid

    def url(self, bucket: str, path: str = "") -> str:
        """A replica URL below `bucket`; the credentials come from the environment."""
        return f"s3://{bucket}/{path}?endpoint={self.endpoint}&region={REGION}&forcePathStyle=true"

    def environment(self) -> dict[str, str]:
        """The whole environment for a child process: ours with this server's credentials and no other's."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "LITESTREAM_")) and name not in _TLS_VARIABLES
        }
        return kept | self.credentials()

    def credentials(self) -> dict[str, str]:
        """The variables that boto and Litestream read."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def create_bucket(self, name: str | None = None) -> str:
        """Make a bucket, of a fresh name unless one is given; returns the name."""
        name = name or f"bucket-{next(self._numbers)}"
        with self.client() as client:
            client.create_bucket(Bucket=name)
        return name

    @contextmanager
    def client(self) -> Iterator[S3Client]:
        """A plain boto3 client: the back door of tests."""
        import boto3
        from botocore.config import Config

        config: Any = Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            s3={"addressing_style": "path"},
            connect_timeout=5,
            read_timeout=30,
        )
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=config,
        )
        try:
            yield client
        finally:
            client.close()

    def start(self) -> None:
        """Start and wait until objects can be written."""
        for attempt in range(1, START_ATTEMPTS + 1):
            self._ports = _free_ports()
            data = self._directory / f"data-{attempt}"
            data.mkdir(parents=True)
            identities = self._directory / "identities.json"
            identities.write_text(json.dumps(self._identities()))
            with (self._directory / "weed.log").open("wb") as log:
                self._process = subprocess.Popen(
                    self._command(data, identities),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self._directory,
                    env=self.environment() | {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
                )
            if self._wait_until_ready():
                return
            self.stop()
        log_text = (self._directory / "weed.log").read_text(errors="replace")
        raise RuntimeError(f"SeaweedFS did not start:\n{log_text[-4000:]}")

    def stop(self) -> None:
        """Kill the server: its data is the tests' and needs no orderly end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> SeaweedServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _identities(self) -> dict[str, Any]:
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        return {"identities": [{"name": "test", "credentials": credentials, "actions": ["Admin"]}]}

    def _command(self, data: Path, identities: Path) -> list[str]:
        ports = []
        for name in PORT_NAMES:
            ports += [f"-{name}.port={self._ports[name]}", f"-{name}.port.grpc={self._ports[name + '.grpc']}"]
        weed = Path(sys.executable).with_name("weed")
        return [
            *("setpriv", "--pdeathsig", "KILL"),
            str(weed),
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *ports,
            "-master.volumeSizeLimitMB=64",
            "-master.telemetry=false",
            "-volume.max=1000",
            "-volume.minFreeSpace=0",
            "-s3",
            f"-s3.config={identities}",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]

    def _wait_until_ready(self) -> bool:
        """Whether a bucket and an object could be written before the deadline."""
        from botocore.exceptions import BotoCoreError, ClientError

        assert self._process is not None
        deadline = time.monotonic() + START_DEADLINE_S
        with self.client() as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                with contextlib.suppress(BotoCoreError, ClientError):  # made by an earlier try, perhaps
                    client.create_bucket(Bucket="ready")
                with contextlib.suppress(BotoCoreError, ClientError):
                    client.put_object(Bucket="ready", Key="ready", Body=b"ready")
                    return True
                time.sleep(0.05)
        return False


def _free_ports() -> dict[str, int]:
    """Ports that were free a moment ago, all different: each service's and its `.grpc`."""
    names = [*PORT_NAMES, *(f"{name}.grpc" for name in PORT_NAMES)]
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}
