"""The `litereplica` program: its command group, and the only place where errors become exit codes.

To add a command: write `litereplica/cli/<name>.py` with a click command called `command` whose docstring ends in an
example, add its line to `COMMANDS` below, and run `scripts/gen-cli-docs`. With --json it also needs a schema in
docs/schemas/commands, and a line in tests/cli/test_json_language.py. Nothing else needs an edit. Options that
several commands share are in `params.py`, output in `output.py`, and `on_store.py` runs a function on a replica.

A command's module is imported only when the command is invoked: `litereplica --help` loads click and nothing heavier.
Commands raise; only this module prints an error or chooses an exit code. Every error is one line on stderr,
`litereplica: error: <cause>: <next step>`; a configuration file may have several. A traceback is printed only with
`--debug`.
"""

from __future__ import annotations

import atexit
import errno
import os
import select
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from litereplica import __version__
from litereplica.cli.fast_imports import fast_imports
from litereplica.cli.help_formatter import HelpContext
from litereplica.cli.one_dash import with_two_dashes
from litereplica.cli.params import LOG_LEVEL, LOG_LEVEL_HELP, log_level_option
from litereplica.errors import ConfigurationErrors, ExitCode, LiteReplicaError, leaves
from litereplica.printable import printable

PROGRAM = "litereplica"
HELP_WIDTH = 100
"""Maximum width of the help in columns: the examples contain whole URLs."""

COMMANDS = {
    "replicate": "Publish the transactions of databases to their replicas as they are committed.",
    "status": "Show the state of writers, a mount or a replica.",
    "health": "Fail if a database is failed, stopped, not running or behind.",
    "list": "List the databases of running writers.",
    "info": "Show which writer is running.",
    "sync": "Publish what is committed now, and say at which TXID.",
    "wait": "Wait until a mount shows, or a replica has, a TXID, a time or everything.",
    "stop": "End the replication of one database of a running writer.",
    "start": "Replicate a database again that was stopped.",
    "register": "Let a running writer replicate one more database.",
    "unregister": "Let a running writer forget a database.",
    "databases": "Show the databases of a configuration file, or those with replicas below a URL.",
    "mount": "Mount a replica as a live, read-only SQLite file.",
    "umount": "Unmount a replica and end its daemon.",
    "restore": "Write the latest or a past state of a replica to a database file.",
    "history": "List the points that a replica can be restored to.",
    "diff": "Show the changes between two points.",
    "verify": "Check that every point of a replica can be restored.",
    "ltx": "List the LTX files of a replica.",
    "compact": "Merge a replica's files into a higher level now.",
    "snapshot": "Publish a snapshot of a replica's latest state now.",
    "reset": "Forget the local state of a database, so that it is compared with its replica.",
    "completion": "Print the script that completes commands and options in a shell.",
    "version": "Show the versions that a bug report needs.",
    "help": "Show the help of the program or of a command.",
}
"""Every command with its line in the group's help, so that the help does not import the command."""

FORMER_NAMES = {"wal": "ltx"}
"""Names that Litestream still accepts, each with the command that it means."""

COMPLETION_VARIABLE = "_LITEREPLICA_COMPLETE"
"""Set by the script of `litereplica completion`, to `bash_complete`, `zsh_complete` or `fish_complete`."""

STDOUT = 1
"""The file descriptor of standard output."""

INTERRUPTED = 130
"""128 + SIGINT, as in shells."""
BROKEN_PIPE = 141
"""128 + SIGPIPE: the exit code of other programs when the reader of their output has closed the pipe."""

EXIT_CODES: dict[int, str] = {
    ExitCode.OK: "success",
    ExitCode.BUG: "a bug in litereplica; --debug shows the traceback",
    ExitCode.USAGE: "an invalid argument or option, or an unsuitable file",
    ExitCode.NOT_FOUND: "no such database, TXID or time in the replica",
    ExitCode.STORE: "the object store refused the request or cannot be reached",
    ExitCode.DAMAGED: "damaged data: a check failed",
    ExitCode.ENVIRONMENT: "a problem of this machine: no /dev/fuse, mount point in use, disk full",
    ExitCode.CONFLICT: "another writer publishes to the replica",
    ExitCode.UNPUBLISHED: "replicate was stopped, and committed transactions are not in the replica",
    ExitCode.SOURCE_REPLACED: "a database was moved, deleted or replaced while it was replicated",
    ExitCode.NOT_REACHED: "what was waited for was not reached in time, or a check found a database that is not well",
    INTERRUPTED: "interrupted",
    BROKEN_PIPE: "the reader of the output closed the pipe",
}
"""Every exit code and its meaning, for the help and docs/CLI.md."""


class LazyGroup(click.Group):
    """A group whose commands are the modules named in `COMMANDS`, imported on use."""

    context_class = HelpContext

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return the command. Raises `NoSuchCommand`."""
        cmd_name = FORMER_NAMES.get(cmd_name, cmd_name)
        if cmd_name not in COMMANDS:
            raise click.exceptions.NoSuchCommand(cmd_name, possibilities=COMMANDS, ctx=ctx)
        with fast_imports():
            command = import_module(f"litereplica.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        command.context_class = HelpContext
        if not any("--log-level" in param.opts for param in command.params):
            log_level_option(command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Return the commands and options that begin with a word, without importing the commands."""
        named = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return named + click.Command.shell_complete(self, ctx, incomplete)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options before the command, in the forms of Go too."""
        return super().parse_args(ctx, with_two_dashes(self, args, ctx, leading=True))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, and rewrite its options to click's forms."""
        name, command, arguments = super().resolve_command(ctx, args)
        if command is None:
            return name, command, arguments
        own = click.Context(command, info_name=name, parent=ctx)
        return name, command, with_two_dashes(command, arguments, own)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands from `COMMANDS`, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of exit codes."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(f"{code:>3}", meaning) for code, meaning in EXIT_CODES.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.option(
    "--debug",
    is_flag=True,
    envvar="LITEREPLICA_DEBUG",
    show_envvar=True,
    help="Log more, and show the traceback of an error.",
)
@click.option("--log-level", type=LOG_LEVEL, metavar="LEVEL", help=LOG_LEVEL_HELP)
@click.pass_context
def cli(ctx: click.Context, debug: bool, log_level: str | None) -> None:
    """Live, read-only SQLite replicas as ordinary files.

    A writer publishes a database's transactions to an object store as LTX files, in Litestream's format; a mount on
    another machine presents them as a SQLite file that is updated as they arrive.

    A REPLICA_URL is file:///path or s3://bucket/path?endpoint=…&region=…

    \b
    Example:
      litereplica replicate app.db file:///srv/replica
      litereplica mount file:///srv/replica /mnt/live --name app.db
      sqlite3 /mnt/live/app.db 'SELECT count(*) FROM orders'
      litereplica umount /mnt/live
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(ExitCode.USAGE)


def main() -> NoReturn:
    """Run the program on the command line of this process, and exit with its exit code.

    The interpreter is not taken down module by module, which takes longer than most commands and frees nothing that the
    kernel would not free. Output is flushed and functions of `atexit` are called as usual.
    """
    code = run(sys.argv[1:])
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.exit(code)  # which waits for it
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the program on `arguments`, and return its exit code. Prints the error, if any."""
    debug = bool(os.environ.get("LITEREPLICA_DEBUG"))
    try:
        if os.environ.get(COMPLETION_VARIABLE):
            from litereplica.cli.completion import complete

            complete(cli, PROGRAM, os.environ[COMPLETION_VARIABLE])
            return ExitCode.OK
        with cli.make_context(PROGRAM, list(arguments)) as ctx:
            debug = ctx.params["debug"]
            cli.invoke(ctx)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:
        if any(isinstance(leaf, BrokenPipeError) for leaf in leaves(error)) and _stdout_is_gone():
            return BROKEN_PIPE
        if debug:
            _print_traceback(error)
        code, line = outcome(error)
        several = [str(each) for each in error.errors] if isinstance(error, ConfigurationErrors) else []
        for each in several or filter(None, [line]):
            click.echo(f"{PROGRAM}: error: {printable(_one_line(each))}", err=True)
        return code
    return ExitCode.OK


def outcome(error: BaseException) -> tuple[int, str]:
    """The exit code and the line to print for `error`; for a group, those of its first leaf, or of a bug in it."""
    errors = leaves(error)
    for leaf in errors:
        if isinstance(leaf, KeyboardInterrupt | click.Abort):
            return INTERRUPTED, ""
    known = [_known(leaf) for leaf in errors]
    for leaf, found in zip(errors, known, strict=True):
        if found is None:
            return _bug(leaf)
    code, line = known[0] or _bug(error)
    return code, _one_line(line)


def _known(error: BaseException) -> tuple[int, str] | None:
    """The exit code and the line of an expected error; None for a bug."""
    match error:
        case LiteReplicaError():
            return error.exit_code, str(error)
        case click.UsageError():
            return ExitCode.USAGE, f"{_clause(error)}: {_usage_hint(error)}"
        case click.ClickException():
            return ExitCode.USAGE, _clause(error)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            place = f" for {error.filename}" if error.filename else ""
            return ExitCode.ENVIRONMENT, f"no space left{place}: free some space and run it again"
        case OSError(filename=str() | bytes() as name) if error.strerror:
            return ExitCode.ENVIRONMENT, f"{os.fsdecode(name)}: {error.strerror}"
    return None


def _clause(error: click.ClickException) -> str:
    """The message of a click error as a clause, without its list of alternatives."""
    alternatives = getattr(error, "possibilities", None)
    message = (error.message if alternatives else error.format_message()).rstrip().removesuffix(".")
    return message[:1].lower() + message[1:]


def _usage_hint(error: click.UsageError) -> str:
    alternatives = getattr(error, "possibilities", None)
    if alternatives:
        return f"did you mean {' or '.join(alternatives)}?"
    return f"see '{error.ctx.command_path if error.ctx else PROGRAM} --help'"


def _bug(error: BaseException) -> tuple[int, str]:
    from litereplica.cli.logging_setup import log_file

    what = _one_line("".join(str(part) for part in (type(error).__name__, ": " if str(error) else "", error)))
    where = log_file()
    if where is None:
        return ExitCode.BUG, f"this is a bug in litereplica: {what}: add --debug before the command to see where"
    import logging

    logging.getLogger(__name__).critical("unexpected %s", type(error).__name__, exc_info=error)
    return ExitCode.BUG, f"this is a bug in litereplica: {what}: the traceback is in {where}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _print_traceback(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error)


def _stdout_is_gone() -> bool:
    """True if the reader of stdout has closed the pipe; stdout is then redirected to /dev/null."""
    poll = select.poll()
    poll.register(STDOUT, 0)  # errors and hang-ups are always reported
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return True
