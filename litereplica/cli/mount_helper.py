"""What mount(8) and umount(8) run for a file system of type `litereplica`: `mount.litereplica`, `umount.litereplica`.

    mount.litereplica SPEC DIRECTORY [-fnsv] [-o OPTIONS]
    umount.litereplica DIRECTORY [-flnrv]

SPEC is the URL of a replica or the path of a database, unless there is an option `url=…`. Each long option of
`litereplica mount` is an option here, with `_` or `-`: `poll_interval=5s`, `allow_other`. A value with a comma is put
in double quotes. Options of mount(8) itself, which every file system has, change nothing: a mount is always read-only,
nosuid and nodev. `ro` is not passed to the kernel, since clients of a live database take locks in its `-shm` file.

The exit codes are those of mount(8). What is mounted already is not mounted again, so that `mount -a` can be repeated.

The daemon has its own files open, so that only it can unmount: umount(8) must ask it, through this helper. It looks for
the helper of a mount if mount(8) has noted options of its own for it, such as `_netdev`, in its table.
"""

from __future__ import annotations

import getopt
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple, NoReturn

import click

from litereplica.cli.main import INTERRUPTED, PROGRAM, cli, outcome, run
from litereplica.errors import ExitCode, UsageError
from litereplica.printable import printable

FAILED = 32
CODES = {int(ExitCode.OK): 0, int(ExitCode.USAGE): 1, int(ExitCode.BUG): 2, INTERRUPTED: 8}
"""Exit codes of mount(8) for ours; `FAILED` for the others."""

MOUNT_FLAGS, UMOUNT_FLAGS = "fnsvo:t:", "flnrvct:"

NOT_OURS = re.compile(
    "(?:no)?(?:atime|auto|dev|diratime|exec|fail|lazytime|mand|relatime|strictatime|suid|user|users)"
    "|_netdev|async|defaults|dirsync|group|loud|owner|ro|rw|silent|sync|(?:x-|X-|comment=|user=|uhelper=|helper=).*"
)
"""Options for mount(8), systemd or any file system. `rw` is what mount(8) passes if the user says nothing."""

NOTED = re.compile("_netdev|uhelper=.*")
WITHOUT_NOTE = "without _netdev, umount does not find its helper: add it, or unmount with 'litereplica umount'"

_ITEM = re.compile(r'(?:[^,"]|"[^"]*"?)+')
MEANT_FOR_A_TERMINAL = ("--help", "--foreground")


class Request(NamedTuple):
    """What mount(8) asks for: the arguments of `litereplica mount`, and its own flags."""

    arguments: list[str]
    directory: str
    flags: frozenset[str]
    is_noted: bool


def read_request(arguments: Sequence[str]) -> Request:
    """Translate the command line of a mount helper. Raises `UsageError`."""
    given, words = _split(arguments, MOUNT_FLAGS)
    if len(words) != 2:
        raise UsageError("expected what to mount and a directory", hint="mount.litereplica REPLICA_URL DIRECTORY -o ro")
    flags = frozenset(name for name, _ in given)
    items = [item for name, value in given if name == "-o" for item in _ITEM.findall(value)]
    source, options = words[0], list[str]()
    names = _option_names()
    for item in items:
        name, _, value = item.partition("=")
        value = value.replace('"', "")
        if name == "url":
            source = value
        elif NOT_OURS.fullmatch(item):
            continue
        elif name == "remount":
            raise UsageError("a mount cannot be remounted", hint="unmount it, and mount it again")
        elif (option := names.get(name.replace("_", "-"))) is not None:
            options.append(f"{option}={value}" if "=" in item else option)
        elif "-s" not in flags:
            raise UsageError(f"{name!r} is not an option of this file system", hint=_advice(name, names))
    is_noted = any(map(NOTED.fullmatch, items))
    return Request(["mount", *options, "--", source, words[1]], words[1], flags, is_noted)


def _split(arguments: Sequence[str], flags: str) -> tuple[list[tuple[str, str]], list[str]]:
    try:
        return getopt.gnu_getopt(list(arguments), flags)
    except getopt.GetoptError as exc:
        raise UsageError(exc.msg, hint="see man mount.litereplica") from exc


def _option_names() -> Mapping[str, str]:
    """The long options of `litereplica mount`, by their names without dashes."""
    command = cli.get_command(click.Context(cli), "mount")
    assert command is not None
    found = [name for param in command.params for name in (*param.opts, *param.secondary_opts)]
    long = [name for name in found if name.startswith("--") and name not in MEANT_FOR_A_TERMINAL]
    return {name.removeprefix("--"): name for name in [*long, "--no-hydrate"]}


def _advice(name: str, names: Mapping[str, str]) -> str:
    similar = get_close_matches(name.replace("_", "-"), names, n=1)
    return f"did you mean {similar[0].replace('-', '_')}?" if similar else "see 'litereplica mount --help'"


def mount(arguments: Sequence[str]) -> int:
    """Mount as mount(8) asks, and return its exit code. Errors are one line on stderr."""
    try:
        request = read_request(arguments)
        url = _url(request)
        if "-v" in request.flags:
            print(f"{PROGRAM} {' '.join(request.arguments)}", file=sys.stderr)
        if "-f" in request.flags or _is_mounted(url, request.directory):
            return CODES[ExitCode.OK]
    except Exception as error:
        return _report("mount.litereplica", error)
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stderr if "-v" in request.flags else nowhere):  # noqa: PTH123
        code = run(request.arguments)
    if code == ExitCode.OK and not request.is_noted:
        print(f"mount.litereplica: {WITHOUT_NOTE}", file=sys.stderr)
    return CODES.get(code, FAILED)


def umount(arguments: Sequence[str]) -> int:
    """Unmount as umount(8) asks, and return its exit code."""
    try:
        given, words = _split(arguments, UMOUNT_FLAGS)
        if len(words) != 1:
            raise UsageError("expected one directory", hint="umount.litereplica DIRECTORY")
    except UsageError as error:
        return _report("umount.litereplica", error)
    lazily = {name for name, _ in given} & {"-l", "-f"}
    return CODES.get(run(["umount", *(["--lazy"] if lazily else []), "--", words[0]]), FAILED)


def _url(request: Request) -> str:
    """Check the arguments as the command does, and return the URL that is mounted."""
    from litereplica.cli.replica_of import find_replica

    with cli.make_context(PROGRAM, request.arguments) as group:
        name, command, rest = cli.resolve_command(group, request.arguments)
        assert command is not None
        with command.make_context(name, rest, parent=group) as ctx:
            given = ctx.params
            return find_replica(given["source"], given["config_path"], expand_env=not given["no_expand_env"]).url


def _is_mounted(url: str, directory: str) -> bool:
    """True if a live daemon serves the same replica at the directory."""
    from litereplica.fuse import mountpoint as mountpoints

    found = mountpoints.mount_at(mountpoints.absolute(Path(directory)))
    if found is None or found.type != mountpoints.FILE_SYSTEM_TYPE:
        return False
    return found.source == mountpoints.option_value(url) and not mountpoints.is_dead(found)


def _report(program: str, error: Exception) -> int:
    code, line = outcome(error)
    print(f"{program}: {printable(line)}", file=sys.stderr)
    return CODES.get(code, FAILED)


def mount_main() -> NoReturn:
    """Run `mount.litereplica` on the command line of this process."""
    sys.exit(mount(sys.argv[1:]))


def umount_main() -> NoReturn:
    """Run `umount.litereplica` on the command line of this process."""
    sys.exit(umount(sys.argv[1:]))
