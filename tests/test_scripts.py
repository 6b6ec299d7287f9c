"""What people and continuous integration run: every script explains itself and refuses what it does not know."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lines import code_lines

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix)
STRICT = [
    "setup",
    "check",
    "bundle",
    "try-install",
    "demo",
    "fuzz",
    "provision-store",
    "provision-primary",
    "provision-replica",
]


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([script, *arguments], capture_output=True, text=True, timeout=60, cwd="/")


def test_the_scripts_are_where_the_tests_look_for_them() -> None:
    assert {"setup", "test", "check", *STRICT} <= {script.name for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_runs_and_explains_itself(script: Path) -> None:
    assert os.access(script, os.X_OK)
    result = run(script, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: scripts/{script.name}")


def test_ci_runs_the_test_script() -> None:
    result = run(ROOT / ".ci" / "run", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "exactly scripts/test" in result.stdout


@pytest.mark.parametrize("name", STRICT)
def test_unknown_argument_is_one_line_with_the_next_step(name: str) -> None:
    result = run(ROOT / "scripts" / name, "--no-such-option")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"{name}: error: unknown ")
    assert result.stderr.endswith(f" --no-such-option: see scripts/{name} --help\n")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_stops_at_the_first_error(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text


def test_hops_counts_every_operation() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "hops.py")]
    result = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    rows = [line.rsplit(maxsplit=2) for line in result.stdout.splitlines()[1:]]
    assert [name for name, _, _ in rows] == ["cached read", "cold read", "advance", "commit", "restore"]
    assert all(int(functions) > 10 and int(switches) > 5 for _, functions, switches in rows)


def test_code_lines_are_neither_blank_nor_docstring_nor_comment() -> None:
    source = '''
"""Docstring."""

# comment
x = (  # counts
    1,
)


def f():
    """Two
    lines."""
    return """a

b"""
'''
    assert code_lines(source) == {5, 6, 7, 10, 13, 14, 15}


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that all users can enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="litereplica-scripts-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose home others cannot enter")
def test_interpreter_that_users_of_services_cannot_reach_is_passed_over(open_directory: Path) -> None:
    """`hidden` is first in PATH, as pyenv's is for root."""
    real = next(path for path in ("/usr/bin/python3", sys.executable) if Path(path).exists())
    places = {"hidden": 0o700, "open": 0o755}
    for name, mode in places.items():
        program = open_directory / name / "bin" / "python3.13"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\n[ "$1" = -c ] || exec {real} "$@"\necho "$0"\n')
        program.chmod(0o755)
        program.parent.chmod(mode)

    def found(mode: str, *names: str, variables: dict[str, str] | None = None) -> tuple[int, str, str]:
        path = ":".join([*(f"{open_directory}/{name}/bin" for name in names), "/usr/sbin", "/usr/bin"])
        script = f'set -euo pipefail; . {ROOT}/scripts/lib.sh; VENV=/nonexistent; find_python "$1"'
        done = subprocess.run(
            ["bash", "-c", script, "setup", mode],
            capture_output=True, text=True, timeout=60, env={"PATH": path} | (variables or {}), check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.strip().removeprefix(str(open_directory)), done.stderr

    assert found("dev", "hidden", "open")[:2] == (0, "/hidden/bin/python3.13")
    code, chosen, said = found("runtime", "hidden", "open")
    assert (code, chosen) == (0, "/open/bin/python3.13")
    assert f"users of services cannot reach {open_directory}/hidden/bin/python3.13" in said
    link = open_directory / "open" / "bin" / "python3.12"
    link.symlink_to(open_directory / "hidden" / "bin" / "python3.13")
    assert found("runtime", "open", variables={"PYTHON": str(link)})[1] == "/open/bin/python3.13"
