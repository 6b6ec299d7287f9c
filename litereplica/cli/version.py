"""`litereplica version`: show the versions that a bug report needs."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import click

from litereplica import __version__
from litereplica.cli import output

LIBRARIES = ("apsw", "boto3", "click", "lz4", "numpy", "pyfuse3", "trio")


@click.command()
@click.option("--verbose", is_flag=True, help="Also show the versions of the Python libraries.")
@output.json_option
def command(verbose: bool, as_json: bool) -> None:
    """Show the versions of litereplica, Python, SQLite, libfuse and the kernel.

    A bug report needs them. SQLite is the library that checks and compares databases here; applications have their own.
    With --json: litereplica, python, sqlite, libfuse (null if it is not installed), kernel, and libraries.

    \b
    Example:
      litereplica version
      litereplica version --verbose --json
    """
    import apsw

    system = os.uname()
    versions: dict[str, str | None] = {
        "litereplica": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "sqlite": apsw.sqlite_lib_version(),
        "libfuse": _libfuse(),
        "kernel": f"{system.sysname} {system.release} {system.machine}",
    }
    libraries = {name: _installed(name) for name in LIBRARIES}
    if as_json:
        output.print_json({**versions, "libraries": libraries})
        return
    for name, found in {**versions, **(libraries if verbose else {})}.items():
        click.echo(f"{name} {found or 'is not installed'}")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _libfuse() -> str | None:
    """The version of libfuse 3; None if it cannot be loaded."""
    try:
        library = ctypes.CDLL("libfuse3.so.3")
        library.fuse_pkgversion.restype = ctypes.c_char_p
        found: bytes = library.fuse_pkgversion()
    except (OSError, AttributeError):
        return None
    return found.decode("ascii", "replace")
