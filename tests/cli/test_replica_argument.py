"""`DB|REPLICA_URL` and --config, which every command that reads a replica has, and what is said where there is none."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from litereplica.cli import main
from litereplica.cli.params import DATABASE
from litereplica.cli.replica_of import ReplicaOf, find_replica
from litereplica.errors import ExitCode, UsageError
from litereplica.format.names import Layout
from litereplica.ltxstore.store import LTXStore
from litereplica.restore.plan_reader import PARALLELISM
from litereplica.storage.base import Storage
from litereplica.storage.credentials import Credentials
from litereplica.storage.file import FileStorage
from litereplica.storage.wrappers.delegate import Call, Operation, WrapperStorage
from litereplica.testing.latency import LatencyStorage
from litereplica.testing.mounts import MountedReplica
from tests.cli.program import program
from tests.conftest import S3Bucket
from tests.helpers.archives import unpack
from tests.ltxstore.replicas import History, publish
from tests.restore.test_generations import GOLDEN

T = TypeVar("T")

READERS = (
    ("ltx", "-level", "all"),
    ("history",),
    ("verify",),
    ("diff", "-from", "latest"),
    ("compact", "-level", "1"),
    ("snapshot",),
    ("restore", "-f", "-o", "out.db"),
)
"""The commands that read one replica, but `mount`."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "litestream.yml"


def find(source: str, file: Path | None) -> ReplicaOf:
    return find_replica(source, file, expand_env=True)


# --- the argument


def test_url_has_the_settings_of_the_configured_replica_that_it_is_or_is_below_of(file: Path) -> None:
    file.write_text(
        "access-key-id: top\nsecret-access-key: t\nregion: r0\n"
        "dbs:\n"
        "  - {path: a, replica: {type: s3, bucket: b, path: one/a, endpoint: e1, access-key-id: k1, "
        "secret-access-key: s1, skip-verify: true}}\n"
        "  - {dir: d, replica: {url: 's3://b/two?endpoint=e2', access-key-id: k2, secret-access-key: s2}}\n"
        "  - {dir: e, replica: {url: s3://b/two/deep, access-key-id: k3, secret-access-key: s3}}\n"
    )
    one = find("s3://b/one/a", file)
    assert one == ReplicaOf(
        "s3://b/one/a?endpoint=https://e1&region=r0&skipVerify=true", credentials=Credentials("k1", "s1")
    )
    assert find("s3://b/two/x/y.db", file).url == "s3://b/two/x/y.db?endpoint=https://e2&region=r0"
    assert find("s3://b/two/deep/z.db", file).credentials == Credentials("k3", "s3")
    assert find("s3://b/twofold", file).credentials == Credentials("top", "t"), "not below two"
    assert find("s3://b/one/a?endpoint=elsewhere", file).credentials == Credentials("top", "t")
    assert find("s3://other/x", file) == ReplicaOf("s3://other/x?region=r0", credentials=Credentials("top", "t"))
    assert find("s3://b/one/a", None) == ReplicaOf("s3://b/one/a")


@pytest.mark.parametrize("scheme", ["", "sqlite://", "sqlite3://"])
def test_database_may_be_given_with_a_scheme(scheme: str, file: Path) -> None:
    file.write_text("dbs: [{path: /srv/app.db, replica: {url: s3://b/x}}]")
    assert find(f"{scheme}/srv/app.db", file) == ReplicaOf("s3://b/x", Path("/srv/app.db"))


def test_tilde_that_no_shell_has_replaced_is_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a file of environment variables, or after `=`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "l.yml").write_text("dbs: [{path: ~/app.db, replica: {url: s3://b/x}}]")
    assert find("~/app.db", Path("~/l.yml")) == ReplicaOf("s3://b/x", tmp_path / "app.db")
    assert DATABASE.convert("sqlite://~/app.db", None, None) == tmp_path / "app.db"
    assert DATABASE.convert("~other/app.db", None, None) == Path("~other/app.db")


def test_variables_and_files_have_an_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [tmp_path / name for name in ("litereplica.yml", "litestream.yml", "one.yml", "two.yml")]
    for name in names:
        name.write_text(f"dbs: [{{path: /srv/app.db, replica: {{path: '/of/{name.name}'}}}}]")
    monkeypatch.setattr("litereplica.cli.config_file.DEFAULT_PATHS", tuple(names[:2]))

    def replica(*arguments: str) -> str:
        with pytest.raises(UsageError) as caught, main.cli.make_context("x", ["restore", *arguments]) as ctx:
            main.cli.invoke(ctx)
        return str(caught.value)

    def used(*arguments: str) -> str:
        monkeypatch.setattr("litereplica.cli.restore.run_on_store", lambda replica, work: _tell(replica.url))
        return replica("-dry-run", *arguments, "/srv/app.db")

    monkeypatch.setenv("LITEREPLICA_CONFIG", str(names[2]))
    monkeypatch.setenv("LITESTREAM_CONFIG", str(names[3]))
    assert used("-config", str(names[1])) == "file:///of/litestream.yml"
    assert used() == "file:///of/one.yml"
    monkeypatch.delenv("LITEREPLICA_CONFIG")
    assert used() == "file:///of/two.yml"
    monkeypatch.setenv("LITESTREAM_CONFIG", "")
    assert used() == "file:///of/litereplica.yml"
    names[0].unlink()
    assert used() == "file:///of/litestream.yml"


def _tell(text: str) -> None:
    raise UsageError(text)


@pytest.mark.slow
def test_credentials_of_the_file_serve_every_command_for_the_url_and_for_the_database(
    s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = s3_bucket.server
    for name in server.credentials():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.chdir(tmp_path)
    database, file = tmp_path / "app.db", tmp_path / "litestream.yml"
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("CREATE TABLE t AS SELECT 7 AS x")
    connection.close()
    replica = {
        "type": "s3",
        "bucket": s3_bucket.name,
        "path": "app",
        "endpoint": server.endpoint,
        "region": "us-east-1",
        "access-key-id": server.access_key,
        "secret-access-key": server.secret_key,
    }
    file.write_text(json.dumps({"dbs": [{"path": str(database), "replica": replica}]}))
    file.chmod(0o600)
    assert program("replicate", "-once", "-config", file).returncode == ExitCode.OK
    url = f"s3://{s3_bucket.name}/app"
    for name, *options in READERS:
        for source in (url, str(database)) if name != "restore" else ():
            more = ["--from", "0000000000000001"] if name == "diff" else options
            assert main.run([name, "-config", str(file), *more, source]) == ExitCode.OK, capsys.readouterr().err
    for number, source in enumerate((url, str(database))):
        output = tmp_path / f"{number}.db"
        assert main.run(["restore", "-config", str(file), "-o", str(output), source]) == ExitCode.OK
        assert output.stat().st_size == database.stat().st_size
    assert main.run(["verify", "-config", str(file), str(database), url]) == ExitCode.OK
    assert main.run(["ltx", f"{url}?endpoint={server.endpoint}&region=us-east-1"]) == ExitCode.STORE, "no credentials"
    with MountedReplica(str(database), tmp_path / "mount", options=["-config", str(file)]) as mount:
        reader = sqlite3.connect(mount.path)
        assert reader.execute("SELECT x FROM t").fetchone() == (7,)
        reader.close()


# --- where there is no replica


@pytest.fixture
def history() -> History:
    made = History()
    made.commit(2)
    return made


@pytest.fixture
def places(tmp_path: Path, replica: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """URLs without LTX files, with what is to be said of each."""
    monkeypatch.chdir(tmp_path)
    with tarfile.open(GOLDEN) as archive:
        unpack(archive, tmp_path / "old")
    (tmp_path / "empty").mkdir()
    return {
        f"file://{tmp_path}/old/replica": "is a backup by Litestream 0.3 (generations/), which has no LTX files: "
        f"write 'litereplica restore file://{tmp_path}/old/replica -o app.db', and replicate that",
        f"file://{tmp_path}": "is no replica itself, but 2 replicas are below it: old/replica, replica: "
        f"write for instance file://{tmp_path}/old/replica",
        f"file://{tmp_path}/old": "1 replica is below it: replica: ",
        f"file://{tmp_path}/empty": "no LTX files",
    }


@pytest.mark.parametrize("arguments", [*READERS, ("status",)], ids=lambda arguments: arguments[0])
def test_place_without_ltx_files_says_what_is_there_instead(
    arguments: tuple[str, ...], places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = arguments
    for url, expected in places.items():
        code = main.run([name, *options, url])
        assert code == (ExitCode.OK if name == "ltx" else ExitCode.NOT_FOUND)
        said = capsys.readouterr().err
        assert expected in said
        assert said.count("\n") == 1


@pytest.mark.slow
def test_mount_of_a_place_without_ltx_files_says_what_is_there_instead(places: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    for url, expected in list(places.items())[:2]:
        done = program("mount", "--cache-dir", tmp_path / "cache", url, tmp_path / "mnt", "-name", "app.db")
        assert (done.returncode, done.stdout) == (ExitCode.NOT_FOUND, "")
        assert expected in done.stderr


def test_backup_by_litestream_03_is_restored_and_shown_by_the_command(
    places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = next(iter(places))
    assert main.run(["restore", "-dry-run", "-json", "-o", "a.db", url]) == ExitCode.OK
    plan = json.loads(capsys.readouterr().out)
    assert plan["generation"] == "2717047099308279"
    assert plan["files"][0]["name"].endswith("00000001.snapshot.lz4")
    assert main.run(["restore", "-dry-run", "-o", "a.db", url]) == ExitCode.OK
    assert "00000002_00000000.wal.lz4" in capsys.readouterr().out
    assert not (tmp_path / "a.db").exists()
    assert main.run(["restore", "-json", "-integrity-check", "full", "-o", "a.db", url]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["txid"], told["generation"], told["wal_index"]) == ("", "2717047099308279", 2)
    assert told["bytes"] == (tmp_path / "a.db").stat().st_size
    assert main.run(["restore", "-all", "-o", "every", f"file://{tmp_path}/old"]) == ExitCode.OK
    assert (tmp_path / "every/replica").read_bytes() == (tmp_path / "a.db").read_bytes()
    assert "of a backup by Litestream 0.3" in capsys.readouterr().err


def test_databases_below_a_url_are_listed(
    places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["databases", "-json", f"file://{tmp_path}"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == [
        {"prefix": prefix, "url": f"file://{tmp_path}/{prefix}"} for prefix in ("old/replica", "replica")
    ]
    assert main.run(["databases", f"file://{tmp_path}/empty"]) == ExitCode.OK
    assert "no replica below" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"), [([], PARALLELISM), (["-parallelism", "3"], 3), (["-parallelism=1"], 1)]
)
def test_number_of_concurrent_requests_of_a_restore_is_that_of_the_option(
    options: list[str], expected: int, tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of many files is read whole, in one request that takes its time."""
    stores: list[CountingStorage] = []

    def opened(url: str, *, credentials: object = None) -> LTXStore:
        storage = CountingStorage(LatencyStorage(FileStorage(tmp_path / "many"), 0.02))
        stores.append(storage)
        return LTXStore(storage, Layout.FILE)

    for _ in range(15):
        history.commit(40, *range(1, 41, 2))
    trio.run(fill, LTXStore(FileStorage(tmp_path / "many"), Layout.FILE), history)
    monkeypatch.setattr("litereplica.cli.on_store.open_ltx_store", opened)
    assert main.run(["restore", *options, "-o", str(tmp_path / "out.db"), f"file://{tmp_path}/many"]) == ExitCode.OK
    assert stores[0].most == expected
    assert (tmp_path / "out.db").read_bytes() == history.database(history.txid)


async def fill(store: LTXStore, history: History) -> None:
    for txid in range(1, history.txid + 1):
        await publish(store, history, 0, txid, txid)


class CountingStorage(WrapperStorage):
    """Counts how many reads of LTX files are under way at a time."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.most = self._now = 0

    async def _around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        self._now += call.operation is Operation.GET
        self.most = max(self.most, self._now)
        try:
            return await perform()
        finally:
            self._now -= call.operation is Operation.GET
