"""The options that name a configuration file, and `read_config`, which reads it.

The file is that of `--config`, else that of the variable LITEREPLICA_CONFIG or LITESTREAM_CONFIG, else
`/etc/litereplica.yml`, else `/etc/litestream.yml`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from litereplica.errors import UsageError

if TYPE_CHECKING:
    from litereplica.config import Config

FC = TypeVar("FC", bound="Callable[..., Any] | click.Command")

DEFAULT_PATHS = (Path("/etc/litereplica.yml"), Path("/etc/litestream.yml"))
"""The files that are read without being named; only the first that exists is."""
VARIABLES = ("LITEREPLICA_CONFIG", "LITESTREAM_CONFIG")


def _option(text: str) -> Callable[[FC], FC]:
    return click.option(
        "-c",
        "--config",
        "config_path",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar=VARIABLES,
        show_envvar=True,
        help=text,
    )


config_option = _option(f"The configuration file.  [default: {DEFAULT_PATHS[0]}, else {DEFAULT_PATHS[1]}]")
config_to_check_option = _option("The configuration file that names the databases; without it none is read.")
no_expand_env_option = click.option(
    "--no-expand-env", is_flag=True, help="Do not replace $NAME and ${NAME} in the file with environment variables."
)


def default_path() -> Path:
    """Return the file that is read if none is named: the first of `DEFAULT_PATHS` that exists, else the first."""
    return next((path for path in DEFAULT_PATHS if path.exists()), DEFAULT_PATHS[0])


def read_config(path: Path | None, *, expand_env: bool) -> Config:
    """Read the configuration in a file, by default that of `default_path`.

    Raises:
        UsageError: the file cannot be read, or its content is invalid.
    """
    from litereplica.config import Surroundings, parse_config
    from litereplica.config.config import MAX_CONFIG_BYTES

    file = without_tilde(path or default_path())
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise UsageError(f"{file} is not a regular file", hint="name a configuration file")
            data = stream.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        hint = "name one with --config" if path is None else "name an existing file"
        raise UsageError(f"there is no configuration file {file}", hint=hint) from None
    except OSError as exc:
        raise UsageError(f"cannot read {file}: {exc.strerror}", hint="name a readable file") from exc
    if len(data) > MAX_CONFIG_BYTES:
        raise UsageError(f"{file} is larger than {MAX_CONFIG_BYTES >> 20} MiB", hint="name a configuration file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise UsageError(f"{file} is not UTF-8 text", hint="name a configuration file") from exc
    surroundings = Surroundings(
        variables=os.environ if expand_env else None, pid=os.getpid(), directory=Path.cwd(), home=_home()
    )
    return parse_config(text, file=str(file), surroundings=surroundings)


def config_for(subject: str | None, path: Path | None, *, expand_env: bool) -> Config | None:
    """Return the configuration whose databases a command is about; None if all daemons, or `subject`, are meant.

    It is that of `--config`, and without a subject that of the variable, which click has put into `path` as well.
    Raises `UsageError` as `read_config`.
    """
    if path is None or (subject is not None and not is_config_given()):
        return None
    return read_config(path, expand_env=expand_env)


def is_config_given() -> bool:
    """True if the command line has `--config`."""
    source = click.get_current_context().get_parameter_source("config_path")
    return source is click.core.ParameterSource.COMMANDLINE


def without_tilde(path: Path) -> Path:
    """Return a path in which `~/` at the beginning is the home directory, where no shell has replaced it."""
    home = _home() if path.parts[:1] == ("~",) else None
    return path if home is None else home.joinpath(*path.parts[1:])


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None
