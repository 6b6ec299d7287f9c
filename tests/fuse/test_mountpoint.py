"""Questions to a mount, which a child process asks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from litereplica.fuse.mountpoint import Owner, ask


def test_question_that_fails_in_any_way_is_an_error_of_the_system() -> None:
    def fails() -> bytes:
        raise ZeroDivisionError

    with pytest.raises(OSError, match="Input/output error") as caught:
        ask(fails, owner=None)
    assert caught.value.errno == errno.EIO
    assert ask(lambda: b"4 2", owner=None) == b"4 2"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_without_the_capability_to_become_others_asks_its_own_mounts() -> None:
    """As a unit with CapabilityBoundingSet= runs it."""
    script = "import sys; from litereplica.fuse.mountpoint import Owner, ask\n"
    script += "print(ask(lambda: b'answer', owner=Owner(int(sys.argv[1]), int(sys.argv[1]))))"
    confined = ["setpriv", "--bounding-set=-setuid,-setgid", "--inh-caps=-all", sys.executable, "-c", script]
    own = subprocess.run([*confined, "0"], capture_output=True, text=True, check=False)
    assert (own.returncode, own.stdout) == (0, "b'answer'\n"), own.stderr
    others = subprocess.run([*confined, "65534"], capture_output=True, text=True, check=False)
    assert others.stderr.splitlines()[-1].startswith("PermissionError")
    assert ask(lambda: str(os.geteuid()).encode(), owner=Owner(65534, 65534)) == b"65534"
