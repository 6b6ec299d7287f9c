"""The program as a user runs it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers.json_language import require_printed

DEADLINE_S = 30.0


def program(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `litereplica` to its end. What it prints with --json must be as docs/schemas says."""
    command = [sys.executable, "-m", "litereplica", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    require_printed(arguments, done.stdout)
    return done
