"""The boundary of the program: errors as one line and an exit code, and what a start imports."""

from __future__ import annotations

import errno
import inspect
import json
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from litereplica import __version__, errors
from litereplica.cli import logging_setup, main
from litereplica.cli.params import log_level_option
from litereplica.errors import ConfigurationErrors, ConflictError, ExitCode, LiteReplicaError, UsageError
from tests.cli.logging_state import logging_restored


def program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "litereplica", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A function that runs the program with a command that raises the given error, and returns the exit code."""

    def run(error: BaseException, *arguments: str) -> int:
        @click.command()
        def command() -> None:
            raise error

        monkeypatch.setattr(main.LazyGroup, "get_command", lambda self, ctx, name: command)
        return main.run([*arguments, "ltx"])

    monkeypatch.delenv("LITEREPLICA_DEBUG", raising=False)
    return run


def every_error_class() -> list[type[LiteReplicaError]]:
    classes = [value for _, value in inspect.getmembers(errors, inspect.isclass)]
    return [value for value in classes if issubclass(value, LiteReplicaError)]


def example_of(kind: type[LiteReplicaError]) -> LiteReplicaError:
    """An error of this class, whatever further facts its constructor wants."""
    error = kind.__new__(kind)
    LiteReplicaError.__init__(error, "what happened", hint="do this")
    return error


@pytest.mark.parametrize("kind", every_error_class())
def test_every_error_of_ours_is_one_line_and_its_exit_code(
    kind: type[LiteReplicaError], raising: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(example_of(kind)) == kind.exit_code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "litereplica: error: what happened: do this\n"


def test_error_without_a_hint_ends_after_the_fact(raising: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(UsageError("what\nhappened")) == ExitCode.USAGE
    assert capsys.readouterr().err == "litereplica: error: what happened\n"


def test_unforeseen_error_is_called_a_bug_and_tells_how_to_see_the_traceback(
    raising: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(ValueError("some\nthing")) == ExitCode.BUG
    line = capsys.readouterr().err
    assert line.startswith("litereplica: error: this is a bug in litereplica: ValueError: some thing: ")
    assert "--debug" in line
    assert line.count("\n") == 1


@pytest.mark.logs("unexpected ValueError")
def test_unforeseen_error_of_a_logging_command_leaves_its_traceback_in_the_log(
    raising: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_restored():
        logging_setup.configure_logging(tmp_path / "log")
        assert raising(ValueError("something")) == ExitCode.BUG
    assert capsys.readouterr().err.endswith(f"ValueError: something: the traceback is in {tmp_path / 'log'}\n")
    assert "Traceback (most recent call last)" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debug_shows_the_traceback_before_the_line(
    how: str, raising: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "environment":
        monkeypatch.setenv("LITEREPLICA_DEBUG", "1")
    assert raising(UsageError("what happened"), *(["--debug"] if how == "option" else [])) == ExitCode.USAGE
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "litereplica: error: what happened"


def test_grouped_errors_of_ours_are_told_as_the_first_of_them(raising: Any, capsys: pytest.CaptureFixture[str]) -> None:
    group = ExceptionGroup("", [ExceptionGroup("", [ConflictError("first")]), UsageError("second")])
    assert raising(group) == ExitCode.CONFLICT
    assert capsys.readouterr().err == "litereplica: error: first\n"


def test_group_with_an_unforeseen_error_is_a_bug(raising: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(ExceptionGroup("", [UsageError("known"), KeyError("unknown")])) == ExitCode.BUG
    assert "KeyError: 'unknown'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), click.Abort(), BaseExceptionGroup("", [ValueError("x"), KeyboardInterrupt()])],
)
def test_interrupt_is_quiet(error: BaseException, raising: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(error) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/srv/x"), "/srv/x: Permission denied"),
        (
            OSError(errno.ENOSPC, "No space left", "/srv/x"),
            "no space left for /srv/x: free some space and run it again",
        ),
        (OSError(errno.ENOSPC, "No space left"), "no space left: free some space and run it again"),
    ],
)
def test_refusal_of_the_operating_system_is_an_environment_error(
    error: OSError, line: str, raising: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(error) == ExitCode.ENVIRONMENT
    assert capsys.readouterr().err == f"litereplica: error: {line}\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--bogus"], "no such option '--bogus': see 'litereplica --help'"),
        (["restore", "-forces"], "no such option '-forces': did you mean --force?"),
        (["restore", "-colour=red"], "no such option '-colour': see 'litereplica restore --help'"),
        (
            ["ltx", "-json=maybe"],
            "invalid value for '--json': 'maybe' is neither true nor false: see 'litereplica ltx --help'",
        ),
        (["restoer"], "no such command 'restoer': did you mean restore or register or unregister?"),
        (["moutn"], "no such command 'moutn': did you mean mount or umount?"),
    ],
)
def test_wrong_usage_is_one_line_with_the_next_step(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == ExitCode.USAGE
    assert capsys.readouterr().err == f"litereplica: error: {line}\n"


def test_reader_of_the_output_that_goes_away_is_no_error() -> None:
    script = "from litereplica.cli import main; import click\n"
    script += "command = click.command()(lambda: [click.echo('x' * 1000) for _ in range(1000)])\n"
    script += "main.LazyGroup.get_command = lambda *_: command\n"
    script += "raise SystemExit(main.run(['ltx']))"
    read, write = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    os.read(read, 1)
    os.close(read)
    _, stderr = child.communicate(timeout=60)
    assert (child.returncode, stderr) == (141, b"")


def test_broken_pipe_that_is_not_the_output_is_not_hidden(raising: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(BrokenPipeError(errno.EPIPE, "Broken pipe")) == ExitCode.BUG
    assert "BrokenPipeError" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["help"], ["-help"], ["--help"], ["-h"]])
def test_help_of_the_program_has_many_names(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == ExitCode.USAGE, "as Litestream, which fails and shows its help"
    shown = capsys.readouterr().out
    assert main.run(arguments) == ExitCode.OK
    assert capsys.readouterr().out == shown


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["restore", "-help"]) == ExitCode.OK
    shown = capsys.readouterr().out
    assert main.run(["help", "restore"]) == ExitCode.OK
    assert capsys.readouterr().out == shown
    assert main.run(["help", "restoer"]) == ExitCode.USAGE
    assert "no such command 'restoer'" in capsys.readouterr().err


def test_version_command_tells_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["version", "-json"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert told["litereplica"] == __version__
    assert told["python"].startswith(platform.python_version())
    assert re.fullmatch(r"3\.\d+\.\d+.*", told["sqlite"])
    assert re.fullmatch(r"3\.\d+\.\d+.*", told["libfuse"])
    assert platform.release() in told["kernel"]
    assert main.run(["version", "-verbose"]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"litereplica {__version__}"
    assert any(re.fullmatch(r"boto3 [\d.]+", line) for line in lines)


def test_all_errors_of_a_configuration_are_printed_a_line_each(
    raising: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(ConfigurationErrors([UsageError("a", hint="b"), UsageError("c")])) == ExitCode.USAGE
    assert capsys.readouterr().err == "litereplica: error: a: b\nlitereplica: error: c\n"


@pytest.mark.parametrize(
    ("arguments", "variable", "level"),
    [
        ([], "", logging.WARNING),
        ([], "DEBUG", logging.DEBUG),
        ([], "silly", logging.WARNING),
        (["-log-level", "ERROR"], "debug", logging.ERROR),
        (["--log-level=trace"], "", logging.DEBUG),
        (["-debug", "-log-level", "error"], "", logging.DEBUG),
    ],
)
def test_level_of_the_log_is_that_of_the_option_else_of_the_variable_else_of_the_file(
    arguments: list[str], variable: str, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    @log_level_option
    def command() -> None:
        logging_setup.configure_logging(level=logging.WARNING)
        found.append(logging.getLogger().level)

    found: list[int] = []
    monkeypatch.setenv(logging_setup.LEVEL_VARIABLE, variable)
    monkeypatch.setattr(main.LazyGroup, "get_command", lambda self, ctx, name: command)
    with logging_restored():
        assert main.run([*arguments, "ltx"]) == ExitCode.OK
        if "-debug" not in arguments:
            assert main.run(["-log-level", "warn", "ltx", *arguments]) == ExitCode.OK
    assert found[0] == level
    assert found[1:] in ([], [level] if arguments else [logging.WARNING])


@pytest.mark.parametrize("before", [True, False])
def test_requests_of_any_command_are_logged_if_a_level_is_named(tmp_path: Path, before: bool) -> None:
    level, command = ("--log-level", "debug"), ("history", f"file://{tmp_path}")
    named = program(*level, *command) if before else program(*command, *level)
    assert re.search(r"^\S+ DEBUG litereplica\S* .*list", named.stderr, re.MULTILINE)
    assert " DEBUG " not in program(*command).stderr


def test_version() -> None:
    result = program("--version")
    assert (result.returncode, result.stdout) == (0, f"litereplica {__version__}\n")


def test_help_names_every_command_and_exit_code() -> None:
    result = program("--help")
    assert result.returncode == 0
    for name in main.COMMANDS:
        assert re.search(rf"^  {name} +\w", result.stdout, re.MULTILINE)
    assert set(ExitCode) <= set(main.EXIT_CODES)
    for code, meaning in main.EXIT_CODES.items():
        words = r"\s+".join(map(re.escape, meaning.split()))
        assert re.search(rf"^ +{code:d}  {words}$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help_of_every_command_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([name, "--help"]) == ExitCode.OK
    text = capsys.readouterr().out
    assert re.search(rf"^ *Example:\n(.*\n)*? *litereplica {name} ", text, re.MULTILINE)


def test_reference_of_the_commands_is_up_to_date() -> None:
    root = Path(main.__file__).parents[2]
    script = [sys.executable, str(root / "scripts" / "gen_cli_docs.py"), "--check"]
    result = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
