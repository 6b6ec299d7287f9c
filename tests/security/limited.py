"""Commands as a user runs them, in processes of their own, with limits of memory and time."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from litereplica.errors import ExitCode
from litereplica.testing.mounts import litereplica_binary

MEMORY_BYTES = 3 << 30
"""Address space: threads and libraries reserve some of it without using it."""

RESIDENT_KIB = 400 << 10
DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended: its exit code, its output as text and as bytes."""

    code: int
    stdout: str
    stderr: str
    raw: bytes


def limited(
    *arguments: str | Path,
    as_user: int | None = None,
    environment: Mapping[str, str] | None = None,
    deadline_s: float = DEADLINE_S,
    stdin: bytes = b"",
) -> Ended:
    """Run `litereplica` to its end; fails if it takes longer than `deadline_s` seconds. `as_user` is a uid."""
    command = [litereplica_binary(), *map(str, arguments)]
    if as_user is not None:
        command = ["setpriv", f"--reuid={as_user}", f"--regid={as_user}", "--clear-groups", *command]
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        timeout=deadline_s,
        env=None if environment is None else dict(environment),
        preexec_fn=_limit,
        check=False,
    )
    raw = done.stdout + done.stderr
    return Ended(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"), raw)


def require_orderly(ended: Ended, *codes: ExitCode) -> None:
    """Fail unless a command ended with one of the exit codes, and said what is wrong without a traceback."""
    assert ended.code in (codes or [ExitCode.OK]), ended.stderr
    assert "bug in litereplica" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not any(byte < 0x20 and byte not in b"\n\r" for byte in ended.raw), "raw control characters"


def resident_kib(pid: int) -> int:
    """Return the largest resident size of a process so far, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
