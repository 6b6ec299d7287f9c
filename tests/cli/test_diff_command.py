"""`litereplica diff` as a user runs it: text, JSON, refusals with their exit codes; nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from litereplica.errors import ExitCode
from litereplica.ltxstore.store import open_ltx_store
from tests.cli.program import DEADLINE_S, program
from tests.conftest import S3Bucket
from tests.helpers.publisher import Publisher

pytestmark = pytest.mark.slow

SETUP = """
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price);
CREATE TABLE log (line);
CREATE VIRTUAL TABLE words USING fts5(text);
INSERT INTO item VALUES (1, 'one', 1), (2, 'two', 2), (3, 'three', 3);
"""


def txid(number: int) -> str:
    return f"{number:016x}"


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publisher]:
    with Publisher(tmp_path_factory.mktemp("primary"), setup=SETUP) as made:
        made.transaction("DELETE FROM item WHERE id = 1", "UPDATE item SET price = 2.0 WHERE id = 2")
        made.transaction(
            "INSERT INTO item VALUES (4, 'a' || char(10) || 'b', X'ff')", "INSERT INTO log VALUES (1), (1)"
        )
        made.transaction("CREATE INDEX by_name ON item (name)", "INSERT INTO words VALUES ('hello')")
        yield made


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; there are none afterwards."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    yield path
    assert list(path.iterdir()) == []


def test_text_tells_pages_schema_and_rows(publisher: Publisher) -> None:
    done = program("diff", publisher.url, "--from", txid(1))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["from", txid(1)]
    assert lines[1].split()[:2] == ["to", txid(4)]
    assert lines[2].startswith("pages  ")
    assert lines[3:] == [
        "index by_name: created",
        "  + CREATE INDEX by_name ON item (name)",
        "table item: 1 inserted, 1 updated, 1 deleted",
        "  - id=1, name='one', price=1",
        "  ~ id=2: price: 2 -> 2.0",
        "  + id=4, name=unistr('a\\u000ab'), price=X'ff'",
        "table log: 2 inserted, 0 updated, 0 deleted",
        "  + line=1 (2 times)",
        "virtual table words: changed",
    ]


def test_json_has_the_same(publisher: Publisher) -> None:
    done = program("diff", publisher.url, "--from", txid(1), "--to", txid(3), "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert (found["from"]["txid"], found["to"]["txid"]) == (txid(1), txid(3))
    assert found["from"]["timestamp"] <= found["to"]["timestamp"]
    assert (found["schema"], found["settings"], found["virtual_tables"], found["note"]) == ([], {}, [], None)
    item, log = found["tables"]
    assert item["rows"] == [
        {"change": "delete", "key": {"id": 1}, "before": {"id": 1, "name": "one", "price": 1}},
        {"change": "update", "key": {"id": 2}, "before": {"price": 2}, "after": {"price": 2.0}},
        {"change": "insert", "key": {"id": 4}, "after": {"id": 4, "name": "a\nb", "price": {"blob": "/w=="}}},
    ]
    assert log["rows"] == [{"change": "insert", "after": {"line": 1}, "count": 2}]
    assert found["pages"]["changed"] == sum(high - low + 1 for low, high in found["pages"]["changed_ranges"]) > 0


def test_backwards_it_tells_the_way_back(publisher: Publisher) -> None:
    done = program("diff", publisher.url, "--from", txid(2), "--to", txid(1), "--name", "item")
    assert "  + id=1, name='one', price=1\n" in done.stdout
    assert "log" not in done.stdout


def test_the_same_point_twice_differs_in_nothing(publisher: Publisher) -> None:
    done = program("diff", publisher.url, "--from", txid(4), "--to", txid(4))
    assert done.returncode == 0
    assert done.stdout.splitlines()[2:] == [f"pages  0 of {len(publisher.content) // 4096} changed"]


def test_limit_cuts_what_is_told_and_says_so(publisher: Publisher) -> None:
    done = program("diff", publisher.url, "--from", txid(1), "--limit", "0", "--name", "item")
    assert done.stdout.splitlines()[-2:] == [
        "table item: 1 inserted, 1 updated, 1 deleted",
        "  … and 3 more; see --limit",
    ]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--from", txid(9)], ExitCode.NOT_FOUND),
        (["--from", "2001-01-01T00:00:00Z"], ExitCode.NOT_FOUND),
        (["--from", "nonsense"], ExitCode.USAGE),
        (["--from", txid(1), "--name", "nowhere"], ExitCode.USAGE),
        ([], ExitCode.USAGE),
    ],
)
def test_what_is_not_there_is_one_line(publisher: Publisher, arguments: list[str], code: ExitCode) -> None:
    done = program("diff", publisher.url, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1


def test_full_file_system_names_the_way_out(publisher: Publisher) -> None:
    """A limit on the size of files stands in for a full disk."""
    command = f"{sys.executable} -m litereplica diff {publisher.url} --from {txid(1)}"
    limited = f"ulimit -f 8; exec {command}"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert done.stderr.endswith("free some space, or set TMPDIR to another directory\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["restoring", "comparing"])
def test_signal_ends_it_and_leaves_nothing(publisher: Publisher, where: str, number: signal.Signals) -> None:
    """It is stopped while it waits for a file that never comes, or while SQLite runs a query without an end."""
    waiting = {
        "restoring": (
            "import trio\n"
            "from litereplica.ltxstore import store\n"
            "async def get(self, info, range=None):\n"
            "    print('there', flush=True)\n"
            "    await trio.sleep_forever()\n"
            "store.LTXStore.get = get\n"
        ),
        "comparing": (
            "from litereplica.difference import databases\n"
            "def endless(connection, *args, **options):\n"
            "    print('there', flush=True)\n"
            "    step = 'SELECT 1 UNION ALL SELECT value + 1 FROM s'\n"
            "    connection.execute(f'WITH RECURSIVE s(value) AS ({step}) SELECT count(*) FROM s').fetchall()\n"
            "databases.compare_table = endless\n"
        ),
    }
    code = waiting[where] + "from litereplica.cli.main import main\nmain()\n"
    with subprocess.Popen(
        [sys.executable, "-c", code, "diff", publisher.url, "--from", txid(1)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        os.kill(process.pid, number)
        assert process.wait(DEADLINE_S) == 130


async def test_replica_on_s3(s3_bucket: S3Bucket, publisher: Publisher) -> None:
    ours, theirs = open_ltx_store(publisher.url), open_ltx_store(s3_bucket.url)
    for info in await ours.list_level(0):
        await theirs.put(info, (await ours.get(info)).data, timestamp_ms=info.modified_ms)
    done = await trio.to_thread.run_sync(program, "diff", s3_bucket.url, "--from", txid(1), "--name", "log")
    assert "table log: 2 inserted, 0 updated, 0 deleted\n" in done.stdout
    await ours.aclose()
    await theirs.aclose()
