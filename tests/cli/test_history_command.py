"""`litereplica history` as a user runs it: table, JSON, drawings, refusals with their exit codes."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path
from typing import cast

import pytest
import trio

from litereplica.cli.params import format_size
from litereplica.cli.plot import BUCKETS_MS, MAX_BUCKETS, bucket_ms, draw
from litereplica.errors import ExitCode, PointNotFound
from litereplica.history.points import Point
from litereplica.ltxstore.store import open_ltx_store
from tests.cli.program import DEADLINE_S, program
from tests.conftest import S3Bucket
from tests.ltxstore.replicas import History, publish

pytestmark = pytest.mark.slow

TIME = "2023-11-14T22:13:20.000Z"
START_MS = 1_772_000_000_000


@pytest.fixture
def history() -> History:
    made = History()
    made.commit(40)
    made.commit(30, 1, 7)
    made.commit(33, 1)
    return made


def test_table_has_a_line_for_each_point(replica: str, history: History) -> None:
    done = program("history", replica)
    lines = [line.split() for line in done.stdout.splitlines()]
    sizes = [format_size(len(history.file(txid, txid))) for txid in (1, 2, 3)]
    assert (done.returncode, done.stderr) == (0, "")
    assert lines == [
        ["txid", "time", "changed", "pages", "size", "published", "levels"],
        [f"{1:016x}", TIME, "40", "40", "20KiB", sizes[0], "0"],
        [f"{2:016x}", TIME, "2", "30", "15KiB", sizes[1], "0"],
        [f"{3:016x}", TIME, "4", "33", "16.5KiB", sizes[2], "0"],
    ]


def test_json_has_the_same(replica: str, history: History) -> None:
    done = program("history", replica, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [point["txid"] for point in found] == [f"{txid:016x}" for txid in (1, 2, 3)]
    assert found[1] == {
        "txid": f"{2:016x}",
        "timestamp": TIME,
        "changed": 2,
        "page_size_bytes": 512,
        "pages": 30,
        "size_bytes": 30 * 512,
        "published_bytes": len(history.file(2, 2)),
        "levels": [0],
    }


def test_limit_shows_the_newest_and_says_so(replica: str) -> None:
    done = program("history", replica, "--limit", "2", "--json")
    assert [point["txid"][-1] for point in json.loads(done.stdout)] == ["2", "3"]
    assert done.stderr == "litereplica: showing the newest 2 of 3 points; see --limit\n"


def test_time_without_points_is_an_empty_list_and_a_note(replica: str) -> None:
    done = program("history", replica, "--since", "2024-01-01T00:00:00Z", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, [])
    assert done.stderr == f"litereplica: {replica} has no points in this time range\n"
    assert len(json.loads(program("history", replica, "--since", TIME, "--until", TIME, "--json").stdout)) == 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--plot", "out.pdf"], ExitCode.USAGE),
        (["--plot", "out.png", "--json"], ExitCode.USAGE),
        (["--plot", "/nowhere/out.png"], ExitCode.USAGE),
        (["--since", "nonsense"], ExitCode.USAGE),
        (["--limit", "0"], ExitCode.USAGE),
        (["--until", "2001-01-01T00:00:00Z", "--plot", "out.png"], ExitCode.NOT_FOUND),
    ],
)
def test_refusals_are_one_line(replica: str, arguments: list[str], code: ExitCode) -> None:
    done = program("history", replica, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1


def test_empty_replica_is_not_found(tmp_path: Path) -> None:
    assert program("history", f"file://{tmp_path}/none").returncode == ExitCode.NOT_FOUND


async def test_replica_on_s3(s3_bucket: S3Bucket, history: History) -> None:
    store = open_ltx_store(s3_bucket.url)
    for txid in (1, 2, 3):
        await publish(store, history, 0, txid, txid)
    done = await trio.to_thread.run_sync(program, "history", s3_bucket.url, "--json", "--since", TIME)
    assert [(point["pages"], point["timestamp"]) for point in json.loads(done.stdout)] == [
        (40, TIME),
        (30, TIME),
        (33, TIME),
    ]
    await store.aclose()


# --- drawings --------------------------------------------------------------------------------


def png_pixels(data: bytes) -> tuple[int, int, set[bytes]]:
    """Width, height, and the distinct lines of a PNG, whose chunks are all as they should be."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, pixels, width, height = 8, b"", 0, 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", data, at + 8 + size)[0] == zlib.crc32(kind + body)
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", body)
        pixels += body if kind == b"IDAT" else b""
        at += 12 + size
    lines = zlib.decompress(pixels)
    return width, height, {lines[row : row + width * 4] for row in range(0, len(lines), width * 4 + 1)}


def svg_texts(path: Path) -> str:
    """The texts of an SVG, which matplotlib leaves as comments beside their outlines."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    root = ElementTree.parse(path, parser).getroot()
    return "\n".join(str(element.text) for element in root.iter() if cast(object, element.tag) is ElementTree.Comment)


def points(count: int, *, step_ms: int = 60_000) -> list[Point]:
    return [
        Point(
            txid,
            500 + txid,
            (0, 9) if txid % 1000 == 7 else (1,) if txid % 10 else (2,),
            START_MS + txid * step_ms,
            4096,
            100 + txid,
            None,
        )
        for txid in range(1, count + 1)
    ]


def test_plot_draws_png_and_svg(tmp_path: Path, replica: str) -> None:
    for name in ("out.png", "out.SVG"):
        done = program("history", replica, "--plot", tmp_path / name)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == f"litereplica: drew 3 points to {tmp_path / name}\n"
    width, height, lines = png_pixels((tmp_path / "out.png").read_bytes())
    assert (width, height) == (1200, 900)
    assert len(lines) > 50
    assert replica in svg_texts(tmp_path / "out.SVG")


@pytest.mark.parametrize("count", [1, 2, 10_000])
def test_drawing_tells_size_bytes_and_points(tmp_path: Path, count: int) -> None:
    drawn = points(count)
    draw(drawn, tmp_path / "out.svg", title="file:///srv/replica")
    texts = svg_texts(tmp_path / "out.svg")
    assert f"Database: {format_size(drawn[-1].size or 0)}" in texts
    assert f": {format_size(sum(point.published for point in drawn))} in total" in texts
    assert f": {count:,} in total" in texts
    assert ("snapshot" in texts) == (count > 2)
    assert (tmp_path / "out.svg").stat().st_size < 4_000_000


def test_same_points_give_the_same_svg(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        draw(points(300), tmp_path / name, title="x")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    draw(points(301), tmp_path / "c.svg", title="x")
    assert (tmp_path / "c.svg").read_bytes() != (tmp_path / "a.svg").read_bytes()


def test_points_of_unknown_time_are_left_out(tmp_path: Path) -> None:
    unknown = Point(1, 500, (0,), None, None, None, None)
    draw([unknown, *points(2)], tmp_path / "out.svg", title="x")
    assert ": 2 in total" in svg_texts(tmp_path / "out.svg")
    with pytest.raises(PointNotFound):
        draw([unknown], tmp_path / "none.svg", title="x")


def test_bars_are_few_and_as_narrow_as_that_allows() -> None:
    rng = random.Random(5)
    for _ in range(2000):
        first = rng.randrange(2 * START_MS)
        last = first + rng.randrange(10 ** rng.randrange(1, 14))
        width = bucket_ms(first, last)
        assert last // width - first // width < MAX_BUCKETS
        narrower = [each for each in (*BUCKETS_MS, width - BUCKETS_MS[-1]) if 0 < each < width]
        narrower.sort()
        assert not narrower or last // narrower[-1] - first // narrower[-1] >= MAX_BUCKETS


def test_missing_matplotlib_is_said_with_the_way_to_get_it(tmp_path: Path, replica: str) -> None:
    code = "import sys; sys.modules['matplotlib'] = None\nfrom litereplica.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "history", replica, "--plot", str(tmp_path / "out.png")],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == ExitCode.ENVIRONMENT
    assert done.stderr.endswith("--plot needs matplotlib: pip install 'litereplica[plot]'\n")
