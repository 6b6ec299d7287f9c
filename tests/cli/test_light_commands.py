"""What commands import that are run often, or that only start a daemon: importing is most of the time of a start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LIBRARIES = {
    *("trio", "pyfuse3", "numpy", "lz4", "cachetools", "h11", "apsw", "sqlite3", "boto3", "botocore"),
    *("urllib3", "yaml", "rich", "dateparser", "watchfiles", "inotify_simple", "asyncio", "logging", "difflib", "lzma"),
}

SCRIPT = """
import sys
from litereplica.cli import main

if "mount" in sys.argv:
    from litereplica.cli import background
    background.run_in_background = lambda work: "nothing"
main.run(sys.argv[1:])
print(*sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""
"""Runs a command, without the daemon if it is `mount`, and prints what is imported then."""

ASK = {"h11"}
"""What a question to a daemon needs."""
SHUTIL = {"lzma"}
"""What comes with `shutil`, which the help and the module that unmounts need."""
START = {"lzma", "logging"}
"""What the process needs that starts a daemon."""


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--help"], SHUTIL),
        (["--version"], set()),
        (["status"], ASK),
        (["status", "/no/such.db"], ASK | SHUTIL),
        (["health"], ASK),
        (["list"], ASK),
        (["sync", "/no/such.db"], ASK | SHUTIL),
        (["wait", "/no/such.db", "--txid", "1"], ASK | SHUTIL),
        (["umount", "/no/such"], SHUTIL),
        (["mount", "s3://bucket/app.db?region=x", "mnt", "--cache-dir", "cache"], START),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_light_command_imports_no_library_that_it_does_not_need(
    arguments: list[str], needed: set[str], tmp_path: Path
) -> None:
    (tmp_path / "mnt").mkdir()
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    imported = set(done.stderr.splitlines()[-1].split())
    assert "click" in imported
    assert imported & LIBRARIES <= needed
