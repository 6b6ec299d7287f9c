"""Whoever types Litestream's command lines, or has its configuration files, gets the same from both programs.

Each line is run by the real Litestream and by ours, most of ours in this process. Compared are success or failure, and
the effect. `docs/LITESTREAM.md` says what differs.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from litereplica.cli import main
from litereplica.config import keys as config_keys
from litereplica.storage.s3_options import OPTION_NAMES
from litereplica.testing.litestream import Completed, run_litestream
from litereplica.times import format_time
from tests.cli.logging_state import logging_restored
from tests.cli.program import program

pytestmark = pytest.mark.slow

TXID = "0000000000000002"


@dataclass(frozen=True, slots=True)
class Place:
    """A database, `app.db`, three transactions of it in a replica by Litestream, configurations, a time in between."""

    root: Path
    time: str

    def fill(self, line: str) -> list[str]:
        """The words of a command line; `@` is the root, `TIME` the time, words are split at spaces."""
        return [word.replace("@", str(self.root)).replace("TIME", self.time) for word in line.split(" ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("habits")
    config = {"dbs": [{"path": f"{root}/app.db", "replica": {"path": f"{root}/replica"}}]}
    (root / "l.yml").write_text(json.dumps(config))
    (root / "x.yml").write_text("dbs: [{path: '$NOT_A_VARIABLE/app.db', replica: {path: /r}}]")
    (root / "bad.yml").write_text("dbs: [")
    (root / "empty").mkdir()
    for row in range(1, 4):
        _execute(root / "app.db", "PRAGMA journal_mode = wal", "CREATE TABLE IF NOT EXISTS t (x)")
        _execute(root / "app.db", f"INSERT INTO t VALUES ({row})")
        done = run_litestream("replicate", "-once", "-config", root / "l.yml")
        assert done.code == 0, done.stderr + done.stdout
    listed = json.loads(run_litestream("ltx", "-json", f"file://{root}/replica").stdout)
    assert len(listed) >= 3, "a TXID for each run"
    second, third = (root / f"replica/ltx/0/{txid:016x}-{txid:016x}.ltx" for txid in (2, 3))
    between_ms = (second.stat().st_mtime_ns + third.stat().st_mtime_ns) // 2_000_000
    return Place(root, format_time(between_ms))


def _execute(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement).fetchall()
    connection.close()


@pytest.fixture
def ours(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Completed]]:
    """Runs a command line in this process."""

    def run(*words: str) -> Completed:
        capsys.readouterr()
        code = main.run(words)
        told = capsys.readouterr()
        return Completed(code, told.out, told.err)

    with logging_restored():
        yield run


def _output(place: Place, done: Completed) -> object:
    """The content of the restored database, or None."""
    path = place.root / "out.db"
    found = path.read_bytes() if path.exists() else None
    for leftover in place.root.glob("out.db*"):
        leftover.unlink()
    return found


def _files(place: Place, done: Completed) -> object:
    keys = ("level", "min_txid", "max_txid", "size", "timestamp")
    return [[file[key] for key in keys] for file in json.loads(done.stdout)]


def _plan(place: Place, done: Completed) -> object:
    plan = json.loads(done.stdout)
    own = [[file[key] for key in ("level", "name", "min_txid", "max_txid", "size")] for file in plan["files"]]
    return [plan["source"], plan["target_path"], plan["max_txid"], own[-1]]  # ours leaves out what need not be read


def _databases(place: Place, done: Completed) -> object:
    return [[each["path"], each["replica"]] for each in json.loads(done.stdout)]


def _summary(place: Place, done: Completed) -> object:
    told = json.loads(done.stdout)
    return [told["db_path"], told["txid"], told["integrity_check"], _output(place, done)]


def _nothing(place: Place, done: Completed) -> object:
    return None


Effect = Callable[[Place, Completed], object]

LINES: list[tuple[str, Effect]] = [
    ("help", _nothing),
    ("-h", _nothing),
    ("-help", _nothing),
    ("--help", _nothing),
    *(
        (f"{name} {form}", _nothing)
        for name in ("replicate", "restore", "ltx", "databases", "status", "reset", "version")
        for form in ("-h", "-help", "--help")
    ),
    ("version", _nothing),
    ("version -verbose", _nothing),
    ("nonsense", _nothing),
    # ltx
    ("ltx -json file://@/replica", _files),
    ("ltx --json=true -level=0 file://@/replica", _files),
    ("ltx -json -level all file://@/replica", _files),
    ("ltx -json -level 9 file://@/replica", _files),
    ("ltx -json -config @/l.yml @/app.db", _files),
    ("ltx -json -config=@/l.yml @/app.db", _files),
    ("ltx -json -no-expand-env -config @/l.yml -level 1 @/app.db", _files),
    ("ltx -json=false file://@/replica", _nothing),
    ("wal -json file://@/replica", _files),
    ("ltx -level 10 file://@/replica", _nothing),
    ("ltx -level x file://@/replica", _nothing),
    ("ltx", _nothing),
    ("ltx file://@/replica more", _nothing),
    ("ltx -config @/l.yml @/other.db", _nothing),
    ("ltx -config @/none.yml @/app.db", _nothing),
    ("ltx file://@/empty", _nothing),
    # databases
    ("databases -json -config @/l.yml", _databases),
    ("databases -config @/l.yml", _nothing),
    ("databases -json -no-expand-env=false -config @/x.yml", _databases),
    ("databases -config @/bad.yml", _nothing),
    ("databases -config @/none.yml", _nothing),
    ("databases -nonsense", _nothing),
    # restore
    ("restore -o @/out.db file://@/replica", _output),
    ("restore --o @/out.db file://@/replica", _output),
    ("restore -o=@/out.db file://@/replica", _output),
    ("restore -config @/l.yml -o @/out.db @/app.db", _output),
    (f"restore -txid {TXID} -o @/out.db file://@/replica", _output),
    ("restore -txid 2 -o @/out.db file://@/replica", _output),
    ("restore -txid 00000000000000ff -o @/out.db file://@/replica", _output),
    ("restore -timestamp TIME -o @/out.db file://@/replica", _output),
    ("restore -timestamp 2020-01-01T00:00:00Z -o @/out.db file://@/replica", _output),
    ("restore -timestamp nonsense -o @/out.db file://@/replica", _output),
    (f"restore -timestamp TIME -txid {TXID} -o @/out.db file://@/replica", _output),
    ("restore -json -o @/out.db file://@/replica", _summary),
    ("restore -json -integrity-check quick -o @/out.db file://@/replica", _summary),
    ("restore -integrity-check=full -parallelism 2 -follow-interval 1s -o @/out.db file://@/replica", _output),
    ("restore -integrity-check some -o @/out.db file://@/replica", _output),
    ("restore -parallelism x -o @/out.db file://@/replica", _output),
    ("restore -dry-run -json -o @/out.db file://@/replica", _plan),
    ("restore -dry-run -json -config @/l.yml -o @/out.db @/app.db", _plan),
    ("restore -dry-run -o @/out.db file://@/replica", _output),
    ("restore -dry-run -o @/out.db file://@/empty", _output),
    ("restore -dry-run -f -o @/out.db file://@/replica", _output),
    (f"restore -f -txid {TXID} -o @/out.db file://@/replica", _output),
    ("restore -f -timestamp TIME -o @/out.db file://@/replica", _output),
    ("restore -o @/l.yml file://@/replica", _nothing),
    ("restore -if-db-not-exists -o @/l.yml file://@/replica", _nothing),
    ("restore -if-replica-exists -o @/out.db file://@/empty", _output),
    ("restore -o @/out.db file://@/empty", _output),
    ("restore file://@/replica", _nothing),
    ("restore", _nothing),
    ("restore -o @/out.db file://@/replica more", _output),
    ("restore -forces -o @/out.db file://@/replica", _output),
    ("restore -config @/l.yml @/app.db", _nothing),
    ("restore -config @/l.yml -if-db-not-exists @/app.db", _nothing),
    ("restore -o @/out.db nonsense://bucket", _output),
    # replicate
    ("replicate -config @/none.yml", _nothing),
    ("replicate -config @/bad.yml", _nothing),
    ("replicate @/app.db", _nothing),
    ("replicate -config @/l.yml @/app.db file://@/other", _nothing),
    ("replicate -force-snapshot @/app.db file://@/other", _nothing),
    ("replicate -enforce-retention @/app.db file://@/other", _nothing),
    ("replicate -once -exec true @/app.db file://@/other", _nothing),
    ("replicate -nonsense @/app.db file://@/other", _nothing),
    # reset
    ("reset", _nothing),
    ("reset @/none.db", _nothing),
    ("reset -dry-run @/app.db", _nothing),
    ("reset -config @/none.yml @/app.db", _nothing),
    ("reset @/app.db @/l.yml", _nothing),
]


@pytest.mark.logs("")
def test_every_documented_command_line_succeeds_or_fails_alike_and_has_the_same_effect(
    place: Place, ours: Callable[..., Completed]
) -> None:
    different = []
    for line, effect in LINES:
        words = place.fill(line)
        done = run_litestream(*words)
        theirs = (done.code == 0, effect(place, done) if done.code == 0 else _output(place, done))
        done = ours(*words)
        mine = (done.code == 0, effect(place, done) if done.code == 0 else _output(place, done))
        if theirs != mine:
            different.append(f"{line}: {_short(theirs)}, ours {_short(mine)} {done.stderr}")
    assert not different, "\n" + "\n".join(different)


def _short(what: tuple[bool, object]) -> str:
    return f"{'succeeds' if what[0] else 'fails'} with {str(what[1])[:200]}"


@pytest.mark.parametrize(
    ("line", "effect"),
    [
        ("ltx -json -config @/l.yml sqlite://@/app.db", _files),
        ("restore -config @/l.yml -o @/out.db sqlite3://@/app.db", _output),
        ("ltx file://@/replica -json", _files),
        ("restore file://@/replica -o @/out.db", _output),
        ("ltx -json -config @/l.yml file://@/replica", _files),
        ("restore -f=false -json=false -o @/out.db file://@/replica --parallelism 4", _output),
    ],
)
def test_what_litestream_refuses_although_it_means_something_works(
    line: str, effect: Effect, place: Place, ours: Callable[..., Completed]
) -> None:
    words = place.fill(line)
    assert run_litestream(*words).code != 0
    _output(place, Completed(0, "", ""))
    done = ours(*words)
    assert done.code == 0, done.stderr
    assert effect(place, done)


def test_restore_replaces_what_is_there_with_force_only_and_an_empty_file_without(
    place: Place, ours: Callable[..., Completed]
) -> None:
    target = place.root / "out.db"
    for content, option, succeeds in ((b"", "", True), (b"x", "", False), (b"x", "-force ", True)):
        for run in (run_litestream, ours):
            target.write_bytes(content)
            done = run(*place.fill(f"restore {option}-o @/out.db file://@/replica"))
            assert (done.code == 0) == succeeds, (content, option, run, done)
            assert (target.read_bytes() != content) == succeeds
            _output(place, done)


def test_database_is_restored_to_its_own_path_by_default(place: Place, ours: Callable[..., Completed]) -> None:
    kept = place.root / "kept.db"
    (place.root / "app.db").rename(kept)
    for path in place.root.glob("app.db-*"):
        path.unlink()
    try:
        found = []
        for run in (run_litestream, ours):
            assert run(*place.fill("restore -config @/l.yml @/app.db")).code == 0
            found.append((place.root / "app.db").read_bytes())
            for path in place.root.glob("app.db*"):
                path.unlink()
        assert found[0] == found[1]
    finally:
        kept.rename(place.root / "app.db")


ONCE = [
    "replicate -once sqlite://@/new.db file://@/new",
    "replicate -once -log-level error -force-snapshot @/new.db file://@/new",
    "replicate -once -force-snapshot -enforce-retention -config @/new.yml",
    "replicate -once -restore-if-db-not-exists -no-expand-env -config @/new.yml",
    "replicate -exec true @/new.db file://@/new",
    "replicate -exec false @/new.db file://@/new",
]


@pytest.mark.parametrize("program_of", ["litestream", "litereplica"])
def test_replicate_once_or_with_a_program_leads_to_the_same_replica(program_of: str, tmp_path: Path) -> None:
    place = Place(tmp_path, "")
    (tmp_path / "new.yml").write_text(
        json.dumps({"dbs": [{"path": f"{tmp_path}/new.db", "replica": {"path": f"{tmp_path}/new"}}]})
    )
    _execute(tmp_path / "new.db", "PRAGMA journal_mode = wal", "CREATE TABLE t (x)")
    for number, line in enumerate(ONCE):
        _execute(tmp_path / "new.db", f"INSERT INTO t VALUES ({number})")
        words = place.fill(line)
        code = run_litestream(*words).code if program_of == "litestream" else program(*words).returncode
        assert (code == 0) == ("false" not in line), line
        if program_of == "litestream" and "-exec" in line:
            continue  # it ends with the program, whatever is published by then
        out = tmp_path / "out.db"
        assert run_litestream("restore", "-o", out, f"file://{tmp_path}/new").code == 0
        connection = sqlite3.connect(out)
        assert connection.execute("SELECT max(x) FROM t").fetchone() == (number,), line
        connection.close()
        _output(place, Completed(0, "", ""))
        if "force-snapshot" in line:
            assert list((tmp_path / "new/ltx/9").glob("*.ltx")), line


TABLE = Path(__file__).parents[2] / "docs/LITESTREAM.md"
CONTROL = ("list", "info", "start", "stop", "sync", "register", "unregister")
COMMANDS = ("replicate", "restore", "ltx", "databases", "status", "reset", "version", *CONTROL)


def test_table_of_the_documentation_has_every_option_key_and_variable() -> None:
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    for name in COMMANDS:
        told = " ".join(row.split("|")[1] for row in rows if re.match(rf"\| `{name}\b", row))
        options = re.findall(r"^(?:\t|  )(-[a-z-]+)", run_litestream(name, "-h").stdout, re.MULTILINE)
        for option in options:
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", told), f"{name} {option}"
        assert options
    keys = {"LITESTREAM_CONFIG", "LITESTREAM_S3_ENDPOINT", "LOG_LEVEL"}
    for table in (config_keys.DOCUMENT, config_keys.DATABASE, config_keys.REPLICA, config_keys.LEVEL):
        keys |= {*table.honoured, *table.idle, *table.refused, *table.former}
    for table in (
        config_keys.SNAPSHOT,
        config_keys.RETENTION,
        config_keys.TIER,
        config_keys.LOGGING,
        config_keys.SOCKET,
    ):
        keys |= {*table.honoured, *table.idle}
    told = " ".join(row.split("|")[1] for row in rows)
    assert not {key for key in keys if not re.search(rf"`(?:\w+\[\]\.)?{key}`", told)}
    names = {parameter for parameter in OPTION_NAMES if f"`{parameter}`" not in told}
    assert names <= {"sseCustomerKeyPath"}
