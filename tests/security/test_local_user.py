"""Another user of this machine: what they own, plant or claim has no authority over our processes and files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from litereplica.errors import ExitCode
from litereplica.testing.mounts import litereplica_binary
from tests.security import fake_mount
from tests.security.limited import limited, require_orderly

ALICE = 65_534
"""Another user's id."""

DEADLINE_S = 30.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")


@pytest.fixture
def alices(tmp_path: Path) -> Path:
    """A directory of the other user, which both can reach."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    directory = tmp_path / "alice"
    directory.mkdir(mode=0o755)
    os.chown(directory, ALICE, ALICE)
    return directory


# --- the status of a mount of another user ---------------------------------------------------------------------------

SCENE = textwrap.dedent(
    """
    set -e
    mount --bind "$CONF" /etc/fuse.conf
    mknod "$DEVICE" c 10 229
    chmod 666 "$DEVICE"
    mount --bind "$DEVICE" /dev/fuse
    alice="setpriv --reuid={alice} --regid={alice} --clear-groups --pdeathsig KILL"
    $alice "$PYTHON" "$FAKE" "$MNT" "$STATUS" > "$OUT" &
    fake=$!
    until grep -q ready "$OUT"; do kill -0 $fake; sleep 0.1; done
    set +e
    "$LITEREPLICA" $COMMAND "$MNT"
    code=$?
    umount -l "$MNT" 2>/dev/null
    kill -9 $fake 2>/dev/null
    exit $code
    """
).format(alice=ALICE)


@contextmanager
def bystander(uid: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """A process that SIGUSR1 would end."""
    command = ["setpriv", f"--reuid={uid}", "--clear-groups", "sleep", "60"]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


def beside_a_fake_mount(tmp_path: Path, alices: Path, command: str, status: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a mount of the other user, in a mount namespace of its own."""
    conf = tmp_path / "fuse.conf"
    conf.write_text("user_allow_other\n")
    conf.chmod(0o644)
    (alices / "mnt").mkdir()
    os.chown(alices / "mnt", ALICE, ALICE)
    fake = tmp_path / "fake_mount.py"
    fake.write_bytes(Path(fake_mount.__file__).read_bytes())
    fake.chmod(0o644)
    environment = os.environ | {
        "CONF": str(conf),
        "DEVICE": str(tmp_path / "fuse"),
        "PYTHON": sys.executable,
        "FAKE": str(fake),
        "MNT": str(alices / "mnt"),
        "STATUS": status,
        "OUT": str(tmp_path / "out"),
        "LITEREPLICA": litereplica_binary(),
        "COMMAND": command,
    }
    (tmp_path / "out").touch()
    return subprocess.run(
        ["unshare", "-m", "--propagation", "slave", "sh", "-c", SCENE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_umount_sends_no_signal_to_a_process_that_another_users_mount_names(tmp_path: Path, alices: Path) -> None:
    with bystander() as victim:
        done = beside_a_fake_mount(tmp_path, alices, "umount", json.dumps({"pid": victim.pid}))
        assert victim.poll() is None, "it was ended"
    assert "Traceback" not in done.stderr
    assert done.returncode == ExitCode.OK, done.stderr


def test_umount_sends_no_signal_to_another_process_of_the_mounts_user(tmp_path: Path, alices: Path) -> None:
    with bystander(ALICE) as victim:
        done = beside_a_fake_mount(tmp_path, alices, "umount", json.dumps({"pid": victim.pid}))
        assert victim.poll() is None, "it was ended"
    assert done.returncode == ExitCode.OK, done.stderr


STATUSES = {
    "pid 1": '{"pid": 1}',
    "pid -1": '{"pid": -1}',
    "pid 0": '{"pid": 0}',
    "pid true": '{"pid": true}',
    "huge pid": '{"pid": ' + "9" * 4000 + "}",
    "text": '{"pid": "1"}',
    "no pid": "{}",
    "list": "[]",
    "nested": "[" * 100_000,
    "not JSON": "hello",
    "other types": '{"pid": 5, "replica": 7, "polling": []}',
    "escapes": '{"pid": 5, "url": "\\u001b[2J\\u202e", "mountpoint": "\\u009b31m"}',
}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("command", ["umount", "status"])
def test_status_that_another_user_wrote_does_no_harm(tmp_path: Path, alices: Path, command: str, status: str) -> None:
    done = beside_a_fake_mount(tmp_path, alices, command, STATUSES[status])
    assert "Traceback" not in done.stderr
    assert "bug in litereplica" not in done.stderr
    assert done.returncode in (ExitCode.OK, ExitCode.ENVIRONMENT), done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "\u202e" not in done.stdout + done.stderr
    assert "\x9b" not in done.stdout + done.stderr


def test_real_mount_of_another_user_is_ended_by_root(tmp_path: Path, alices: Path) -> None:
    """Control: what is checked does not keep root from ending a genuine daemon of another user."""
    from litereplica.cli.mount_status import daemon_of
    from litereplica.fuse.mountpoint import Mount

    mount = Mount(1, 1, "0:1", "/mnt", "fuse.litereplica", "x", f"rw,user_id={os.getuid()}", frozenset(), frozenset())
    fd = os.open("/dev/fuse", os.O_RDWR)
    try:
        with daemon_of(mount, os.getpid()) or pytest.fail("not recognised") as daemon:
            before = signal.signal(signal.SIGUSR1, lambda *_: None)
            daemon.ask_to_end()
            signal.signal(signal.SIGUSR1, before)
            assert daemon.runs
    finally:
        os.close(fd)
    assert daemon_of(mount, os.getpid()) is None, "serves no file system any more"


# --- the directory of control sockets --------------------------------------------------------------------------------


def test_status_asks_no_socket_in_a_directory_that_another_user_made(tmp_path: Path, alices: Path) -> None:
    planted = alices / "litereplica"
    planted.mkdir()
    os.chown(planted, ALICE, ALICE)
    bob = 65_533
    environment = os.environ | {"XDG_RUNTIME_DIR": str(alices)}
    ended = limited("status", as_user=bob, environment=environment)
    require_orderly(ended, ExitCode.ENVIRONMENT)
    assert "is not a private directory of this user" in ended.stderr
