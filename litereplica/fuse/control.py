"""What a mount answers on its control socket; docs/design/control.md has the protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import trio

from litereplica.control.http import Request, Response, Route, json_response
from litereplica.control.protocol import About, WaitFor, text_field, wait_fields
from litereplica.errors import NotReached
from litereplica.fuse.state import MountState


class Mounted(Protocol):
    """What is asked: the session of a mount."""

    def records(self) -> list[dict[str, Any]]:
        """Return what is mounted, as JSON objects."""

    async def points(self, path: str) -> Sequence[Mapping[str, Any]]:
        """Return the newest points in time of the database at `path`."""

    def state_of(self, path: Path) -> MountState | None:
        """Return the state of the database that `path` names; None if it is not open."""

    async def reach(self, path: Path, wanted: WaitFor) -> MountState:
        """Return the state when transactions of the database that `path` names see what is wanted if they begin now.

        `path` is that of a file in the mount, or the mount point of a single database. Raises `DatabaseNotFound`.
        """


class MountControl:
    """The routes of a mount."""

    def __init__(self, mounted: Mounted, *, log_file: str | None) -> None:
        self._mounted = mounted
        self._about = About("mount", log_file=log_file)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("GET", "/info", self._info),
            Route("GET", "/list", self._list),
            Route("GET", "/status", self._status),
            Route("POST", "/wait", self._wait),
        ]

    async def _info(self, request: Request) -> Response:
        return json_response(self._about.info(databases=len(self._mounted.records())))

    async def _list(self, request: Request) -> Response:
        paths = [record["db_path"] for record in self._mounted.records()]
        return json_response({"databases": [{"path": path, "status": "mounted"} for path in paths]})

    async def _status(self, request: Request) -> Response:
        return json_response(self.document(request.query.get("path")))

    def document(self, wanted: str | None = None) -> dict[str, Any]:
        """Return the whole state, with the records of what is mounted, or of what is at the path `wanted`."""
        mine = [each for each in self._mounted.records() if wanted in (None, each["mountpoint"], each["db_path"])]
        return self._about.status(mine)

    async def points(self, path: str) -> Sequence[Mapping[str, Any]]:
        """Return the newest points in time of the database at `path`, ascending."""
        return await self._mounted.points(path)

    async def _wait(self, request: Request) -> Response:
        fields = request.fields()
        path, wanted = Path(text_field(fields, "path")), wait_fields(fields)
        with trio.move_on_after(wanted.timeout_s):
            state = await self._mounted.reach(path, wanted)
            return json_response({"path": str(path), **state.public()})
        late = self._mounted.state_of(path)
        where = "not open" if late is None else f"at TXID {late.txid:016x}"
        error = f" ({late.error})" if late is not None and late.error else ""
        raise NotReached(
            f"{path} is {where} after {wanted.timeout_s:g} s{error}",
            hint="see the log of the mount" if late is None else "is the writer running? see 'litereplica status'",
        )
