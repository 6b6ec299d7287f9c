"""What commands print with --json, and what daemons answer, is as docs/JSON.md and its schemas say."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import click
import pytest
from jsonschema import Draft202012Validator

from litereplica.cli import main
from litereplica.control.client import ask
from litereplica.control.protocol import About
from litereplica.control.sockets import own_directory
from litereplica.errors import ExitCode
from litereplica.fuse.control import MountControl, Mounted
from litereplica.testing.mounts import MountedReplica
from litereplica.web.served import Site
from litereplica.writer.fleet.control import WriterControl
from litereplica.writer.settings import WriterSettings
from tests.e2e.test_metrics import fetch_json, is_healthy, served_at, until
from tests.e2e.test_metrics import writer as writer_process
from tests.helpers.json_language import require_answered, require_printed, require_schema, schemas
from tests.helpers.site_source import SiteSource

NOT_JSON = {"/", "/metrics", "/debug/log", "/debug/tasks"}
"""What is served as a page, or as text."""

OF_STORES = [
    ["databases", "--config", "CONFIG", "--json"],
    ["databases", "file://DIRECTORY", "--json"],
    ["replicate", "DB", "URL", "--once", "--json"],
    ["replicate", "--config", "CONFIG", "--once", "--json"],
    ["status", "URL", "--json"],
    ["status", "--config", "CONFIG", "--json"],
    ["history", "URL", "--json"],
    ["diff", "URL", "--from", "0000000000000001", "--json"],
    ["verify", "URL", "--json"],
    ["verify", "DB", "URL", "--json"],
    ["ltx", "URL", "--json"],
    ["compact", "URL", "--level", "1", "--json"],
    ["snapshot", "URL", "--json"],
    ["restore", "URL", "-o", "DIRECTORY/restored.db", "--json"],
    ["restore", "URL", "-o", "DIRECTORY/planned.db", "--dry-run", "--json"],
    ["restore", "file://DIRECTORY", "--all", "-o", "DIRECTORY/all", "--json"],
    ["reset", "DB", "--dry-run", "--json"],
    ["status", "--all", "--json"],
    ["version", "--json"],
]
OF_DAEMONS = [
    ["status", "DB", "--json"],
    ["status", "MOUNT", "--json"],
    ["health", "DB", "--json"],
    ["sync", "DB", "--json"],
    ["sync", "DB", "--wait", "--json"],
    ["wait", "DB", "--caught-up", "--json"],
    ["wait", "MOUNT", "--caught-up", "--json"],
    ["info", "--socket", "SOCKET", "--json"],
    ["list", "--socket", "SOCKET", "--json"],
    ["register", "NEW", "--replica", "file://DIRECTORY/new", "--socket", "SOCKET", "--json"],
    ["unregister", "NEW", "--dry-run", "--socket", "SOCKET", "--json"],
    ["unregister", "NEW", "--socket", "SOCKET", "--json"],
    ["stop", "DB", "--json"],
    ["start", "DB", "--json"],
]


def answers(routes: Callable[[], Any]) -> set[str]:
    return {route.path for route in routes()} - NOT_JSON


def json_routes() -> set[str]:
    """The paths of all daemons that answer with JSON."""
    writer = WriterControl(About("writer"), fleet=lambda: None, starting=tuple, settings=WriterSettings())
    mount = MountControl(cast(Mounted, None), log_file=None)
    return answers(writer.routes) | answers(mount.routes) | answers(Site(SiteSource([])).routes)


def test_every_document_has_a_schema_and_every_schema_is_used() -> None:
    found = schemas()
    for schema in found.values():
        Draft202012Validator.check_schema(schema)
    group = main.cli
    context = click.Context(group)
    commands = {name: group.get_command(context, name) for name in group.list_commands(context)}
    with_json = {
        name for name, each in commands.items() if each and any("--json" in param.opts for param in each.params)
    }
    assert {name.partition("/")[2] for name in found if name.startswith("commands/")} == with_json
    assert with_json == {arguments[0] for arguments in OF_STORES + OF_DAEMONS}, "each is checked below"
    assert {name.removeprefix("http") for name in found if name.startswith("http/")} == json_routes() | {"/error"}
    shared = [name for name in found if "/" not in name]
    for name in shared:
        assert any(f"{name}.json#" in json.dumps(schema) for schema in found.values())
        for part in found[name]["$defs"]:
            assert any(f"#/$defs/{part}" in json.dumps(schema) for schema in found.values()), part


def test_a_document_of_another_form_is_refused() -> None:
    record = {"txid": "2a", "timestamp": None}
    with pytest.raises(AssertionError, match=r"\$\.txid: '2a' does not match"):
        require_schema("http/wait", {"path": "/x", **record})
    with pytest.raises(AssertionError, match="'new' was unexpected"):
        require_schema("commands/health", {"status": "healthy", "databases": 1, "new": 1})


def create(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript("PRAGMA journal_mode = wal; CREATE TABLE t (x);")


def run(arguments: list[str], places: dict[str, str]) -> None:
    """Run a command in this process, and check what it prints."""
    words = [arguments[0]]
    for word in arguments[1:]:
        for name, place in places.items():
            word = word.replace(name, place)
        words.append(word)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main.run(words) == ExitCode.OK, words
    assert json.loads(output.getvalue()), words
    require_printed(words, output.getvalue())


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A database and its replica, with two points."""
    directory = tmp_path_factory.mktemp("json")
    database, url, config = directory / "app.db", f"file://{directory}/replica", directory / "litereplica.yml"
    create(database)
    config.write_text(json.dumps({"dbs": [{"path": str(database), "replica": {"url": url}}]}))
    places = {"DB": str(database), "URL": url, "CONFIG": str(config), "DIRECTORY": str(directory)}
    run(["replicate", "DB", "URL", "--once", "--json"], places)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO t VALUES (1)")
    run(["replicate", "DB", "URL", "--once", "--json"], places)
    return places


@pytest.mark.slow
@pytest.mark.parametrize("arguments", OF_STORES, ids=" ".join)
def test_commands_on_stores_print_what_their_schema_says(places: dict[str, str], arguments: list[str]) -> None:
    run(arguments, places)


@contextlib.contextmanager
def daemons(directory: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """A writer and a mount; yields the words of their places, and the URLs of their pages."""
    database, url = directory / "app.db", f"file://{directory}/replica"
    for each in (database, directory / "new.db"):
        create(each)
    options = ["--metrics-addr", "localhost:0"]
    with writer_process(directory, database, url) as first, contextlib.ExitStack() as stack:
        until(lambda: is_healthy(first) and fetch_json(f"{first}/status")["databases"][0]["state"] == "active", first)
        mount = stack.enter_context(MountedReplica(url, directory / "mount", options=options))
        socket = str(own_directory(os.environ, uid=os.geteuid()) / f"{fetch_json(f'{first}/status')['pid']}.sock")
        places = {"DB": str(database), "MOUNT": str(mount.mountpoint), "SOCKET": socket}
        places |= {"NEW": str(directory / "new.db"), "DIRECTORY": str(directory)}
        yield places, [first, served_at(mount.log_file)]


@pytest.mark.slow
def test_daemons_answer_what_the_schemas_say(tmp_path: Path) -> None:
    with daemons(tmp_path) as (places, urls):
        for arguments in OF_DAEMONS:
            run(arguments, places)
        asked = set()

        def post(target: str, **fields: Any) -> None:
            asked.add(target)
            require_answered(target, ask(Path(places["SOCKET"]), "POST", target, fields))

        for url, path in zip(urls, (places["DB"], f"{places['MOUNT']}/app.db"), strict=True):
            for target in ("/status", "/databases", "/health", "/health?max-lag=1ms", f"/points?path={path}"):
                asked.add(target.partition("?")[0])
                assert "error" not in fetch_json(url + target), target
            assert "error" in fetch_json(f"{url}/points?path=/none")
        for target in ("/info", "/list", f"/txid?path={places['DB']}"):
            asked.add(target.partition("?")[0])
            require_answered(target, ask(Path(places["SOCKET"]), "GET", target))
        for target in ("/sync", "/wait", "/stop", "/start"):
            post(target, path=places["DB"])
        post("/register", path=places["NEW"], replica_url=f"file://{tmp_path}/new")
        post("/unregister", path=places["NEW"])
        assert asked == json_routes()
