"""A machine with a real systemd: namespaces of its own, and a copy-on-write view of this machine's root directory.

Process 1 is the installed systemd. It reads only the units of the test and those below /usr/local. For it /proc/sys is
read-only, and the network is a loopback of its own. Everything ends with process 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SYSTEMD = Path("/lib/systemd/systemd")
NAMED_HIERARCHY, UNIFIED = Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup")
NO_VARIABLES: Mapping[str, str] = {}
START_DEADLINE_S = 60.0
COMMAND_DEADLINE_S = 120.0

LOGS = "/var/log/services"
"""There is no journal: each service writes to a file of its name here."""

TARGETS = "basic final local-fs multi-user network-online remote-fs remote-fs-pre shutdown sysinit umount".split()  # noqa: SIM905

BOOT = r"""
set -euo pipefail
work=$1 cgroup=$2
ip link set lo up
mount -t tmpfs -o mode=755 tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
root=$work/root
rm -rf "$root/etc/systemd/system" "$root/usr/local/lib/systemd" "$root/sys" "$root/proc" "$root/dev" "$root/run"
mkdir -p "$root"/{etc/systemd/system,sys,proc,dev,run,old}
mkdir "$root/etc/systemd/system/service.d"
printf '[Service]\nStandardOutput=append:%s/%%n\n' "$4" >"$root/etc/systemd/system/service.d/log.conf"
mkdir -p "$root$4"
chmod a+x "$root/root" # Python may lie below it
for target in $3; do printf '[Unit]\n' >"$root/etc/systemd/system/$target.target"; done
mount -t proc proc "$root/proc"
mount --bind -o ro "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
if [ "$cgroup" = named ]; then
    mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd,xattr cgroup "$root/sys/fs/cgroup/systemd"
else
    mount -t cgroup2 cgroup "$root/sys/fs/cgroup"
fi
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/shm" "$root/dev/pts" "$root/run/mount"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
for each in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 fuse:10:229; do
    IFS=: read -r name major minor <<<"$each"
    mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done
ln -s /proc/self/fd "$root/dev/fd"
cd "$root"
pivot_root . old
umount --lazy /old
exec env -i container=litereplica-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    SYSTEMD_UNIT_PATH=/etc/systemd/system:/usr/local/lib/systemd/system \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=null
"""


def can_boot() -> bool:
    """True if this machine has what a machine needs."""
    programs = ("unshare", "nsenter", "ip", "useradd", "setpriv", "pivot_root")
    cgroup = NAMED_HIERARCHY.is_dir() or (UNIFIED / "cgroup.procs").exists()
    return os.geteuid() == 0 and SYSTEMD.exists() and cgroup and all(map(shutil.which, programs))


class SystemdMachine:
    """A running machine. Obtain one from `systemd_machine`."""

    def __init__(self, init: int) -> None:
        self._enter = ["nsenter", f"--target={init}", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup"]

    def run(
        self, script: str, *, check: bool = True, variables: Mapping[str, str] = NO_VARIABLES
    ) -> subprocess.CompletedProcess[str]:
        """Run a script in the machine, as root."""
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        done = subprocess.run(
            [*self._enter, "bash", "-euo", "pipefail", "-c", f"cd /\n{script}"],
            capture_output=True, text=True, timeout=COMMAND_DEADLINE_S, env=environment | dict(variables), check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done

    def logs(self) -> str:
        """The last lines that each service has written."""
        script = f"systemctl status --no-pager --all 'litereplica*' || true; tail --lines 20 {LOGS}/*"
        return self.run(script, check=False).stdout

    def wait_for(self, script: str) -> None:
        """Return when a script succeeds."""
        deadline = time.monotonic() + START_DEADLINE_S
        while (done := self.run(script, check=False)).returncode != 0:
            assert time.monotonic() < deadline, f"{script}: {done.stdout}\n{done.stderr}\n{self.logs()}"
            time.sleep(0.1)


@contextmanager
def systemd_machine(directory: Path) -> Iterator[SystemdMachine]:
    """Boot a machine, with what it needs on disk below an empty `directory`."""
    kind, hierarchy = ("named", NAMED_HIERARCHY) if NAMED_HIERARCHY.is_dir() else ("unified", UNIFIED)
    group = hierarchy / f"litereplica-test-{os.getpid()}"
    group.mkdir()
    join = f"echo $$ >{group}/cgroup.procs; exec unshare --mount --propagation private --pid --net --ipc --uts --cgroup"
    command = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", f'{join} --fork --kill-child bash -c "$@"', "sh"]
    process = subprocess.Popen([*command, BOOT, "boot", str(directory), kind, " ".join(TARGETS), LOGS])
    try:
        yield _booted(process)
    finally:
        process.kill()
        process.wait()
        _remove(group)


def _booted(process: subprocess.Popen[bytes]) -> SystemdMachine:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the machine has ended"
        pids = children.read_text().split()
        if pids and Path(f"/proc/{pids[0]}/exe").resolve().name == "systemd":
            machine = SystemdMachine(int(pids[0]))
            if machine.run("systemctl is-system-running", check=False).stdout.strip() in ("running", "degraded"):
                return machine
        time.sleep(0.05)
    raise AssertionError("systemd did not start")


def _remove(group: Path) -> None:
    """Remove a control group and those below it; its processes are ending."""
    deadline = time.monotonic() + START_DEADLINE_S
    while group.exists():
        for each in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            _try_to_remove(each)
        _try_to_remove(group)
        assert time.monotonic() < deadline, f"{group} is in use"


def _try_to_remove(group: Path) -> None:
    try:
        group.rmdir()
    except OSError:
        time.sleep(0.01)
