"""A line of /etc/fstab, by the real mount(8) and umount(8), in a mount namespace of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from litereplica.testing.mounts import litereplica_binary
from tests.helpers.namespaces import in_a_namespace
from tests.helpers.publisher import Publisher

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root"),
]

SESSION = r"""
set -eu
mount -t tmpfs tmpfs /run/mount
mount -t tmpfs tmpfs "$WORK/sbin"
mkdir "$WORK/sbin/upper" "$WORK/sbin/work"
mount -t overlay overlay -o "lowerdir=/usr/sbin,upperdir=$WORK/sbin/upper,workdir=$WORK/sbin/work" /usr/sbin
for name in mount.litereplica umount.litereplica; do
    ln -s "$PROGRAMS/$name" "/usr/sbin/$name"
    ln -s "$PROGRAMS/$name" "/usr/sbin/${name%litereplica}fuse.litereplica"
done
mount --bind "$WORK/fstab" /etc/fstab
cd "$WORK"

try() { code=0; "$@" 2>&1 || code=$?; echo "$code: $*"; }
count() { sqlite3 -readonly "$1" 'SELECT count(*) FROM t'; }

try mount -a
try mount -a
for each in one two; do
    echo "$each $(findmnt --noheadings --output FSTYPE "$each") $(count $each/app.db)"
done
sqlite3 one/app.db 'INSERT INTO t VALUES (1)' || true
try mount wrong
try mount missing
(echo 'BEGIN; SELECT x FROM t;'; cat pipe) | sqlite3 -readonly two/app.db >/dev/null &
exec 9>pipe
while ! umount two 2>&1 | grep -q sqlite3; do sleep 0.05; done
try umount two
exec 9>&-
wait $!
try umount two
try mount two
try umount "$WORK/two"
try umount --lazy one
try mount plain
try umount "$WORK/plain"
try "$PROGRAMS/litereplica" umount plain
grep "$WORK/[otp]" /proc/self/mounts || echo nothing is mounted
"""

EXPECTED = """\
0: mount -a
0: mount -a
one fuse.litereplica 3
two fuse.litereplica 3
Error: stepping, attempt to write a readonly database (8)
mount.litereplica: 'pol_interval' is not an option of this file system: did you mean poll_interval?
1: mount wrong
litereplica: error: the replica has no LTX files: check the URL, or start 'litereplica replicate'
32: mount missing
litereplica: error: WORK/two is in use by sqlite3 (pid PID): end these processes first, or use --lazy
32: umount two
0: umount two
0: mount two
0: umount WORK/two
0: umount --lazy one
mount.litereplica: without _netdev, umount does not find its helper: add it, or unmount with 'litereplica umount'
0: mount plain
umount: WORK/plain: target is busy.
32: umount WORK/plain
0: PROGRAMS/litereplica umount plain
nothing is mounted
"""


def test_line_of_fstab_is_mounted_and_unmounted_by_the_systems_own_commands(tmp_path: Path) -> None:
    setup = "CREATE TABLE t (x); INSERT INTO t VALUES (1), (2), (3)"
    with Publisher(tmp_path / "primary", setup=setup) as publisher:
        url = publisher.url
    for name in ("one", "two", "wrong", "missing", "plain", "sbin"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe")
    programs = str(Path(litereplica_binary()).parent)
    common = f"name=app.db,cache_dir={tmp_path}/cache"
    lines = [
        f"{url} {tmp_path}/one litereplica ro,_netdev,nofail,poll_interval=200ms,{common}-one 0 0",
        f"litereplica {tmp_path}/two fuse.litereplica defaults,_netdev,url={url},allow_other,{common}-two 0 0",
        f"{url} {tmp_path}/wrong litereplica noauto,pol_interval=1s 0 0",
        f"{url} {tmp_path}/plain litereplica noauto,{common}-one 0 0",
        f"file://{tmp_path}/nothing {tmp_path}/missing litereplica noauto,ro 0 0",
    ]
    (tmp_path / "fstab").write_text("\n".join([*lines, ""]))
    done = subprocess.run(
        [*in_a_namespace(), "sh", "-c", SESSION],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
        env=os.environ | {"WORK": str(tmp_path), "PROGRAMS": programs},
    )  # fmt: skip
    text = done.stdout.replace(str(tmp_path), "WORK").replace(programs, "PROGRAMS")
    assert re.sub(r"\(pid \d+\)", "(pid PID)", text).splitlines() == EXPECTED.splitlines()
