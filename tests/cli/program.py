"""The program as a user runs it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DEADLINE_S = 30.0


def program(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `litereplica` to its end."""
    command = [sys.executable, "-m", "litereplica", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
