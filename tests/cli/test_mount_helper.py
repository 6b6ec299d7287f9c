"""What mount(8) passes, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from litereplica.cli import mount_helper
from litereplica.cli.mount_helper import FAILED, read_request
from litereplica.errors import UsageError

URL = "s3://backups/app.db?endpoint=http://127.0.0.1:1&region=us-east-1"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("rw", []),
        ("ro,_netdev,nofail,noauto,user,noatime,nosuid,nodev,x-systemd.automount,comment=x y", []),
        (
            "ro,poll_interval=5s,allow_other,cache-size=2GiB",
            ["--poll-interval=5s", "--allow-other", "--cache-size=2GiB"],
        ),
        ("hydrate,no_hydrate,hydrate=small,one", ["--hydrate", "--no-hydrate", "--hydrate=small", "--one"]),
        ('cache_dir="/var/a,b",include=a*,include=b*', ["--cache-dir=/var/a,b", "--include=a*", "--include=b*"]),
        ("config=/etc/litereplica.yml,,", ["--config=/etc/litereplica.yml"]),
    ],
)
def test_options_of_mount_become_those_of_the_command(options: str, expected: list[str]) -> None:
    request = read_request([URL, "/mnt/a b", "-o", options, "-n"])
    assert request.arguments == ["mount", *expected, "--", URL, "/mnt/a b"]


def test_url_may_be_an_option_and_several_o_add_up() -> None:
    request = read_request(["none", "/mnt", "-s", "-o", f"ro,url={URL},sloppy_thing=1", "-o", "one", "-t", "fuse.x"])
    assert request.arguments == ["mount", "--one", "--", URL, "/mnt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([URL], "expected what to mount and a directory"),
        ([URL, "/mnt", "-o", "poll_intervall=5s"], "'poll_intervall' is not an option of this file system: did"),
        ([URL, "/mnt", "-o", "foreground"], "'foreground' is not an option"),
        ([URL, "/mnt", "-o", "remount,ro"], "a mount cannot be remounted: unmount it, and mount it again"),
        ([URL, "/mnt", "-q"], "option -q not recognized"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_request(arguments)
    assert message in str(caught.value)


def test_exit_codes_are_those_of_mount(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replica, place = f"file://{tmp_path}/none", tmp_path / "mnt"
    assert mount_helper.mount([replica, str(place), "-o", "poll_interval=5"]) == 1
    assert mount_helper.mount([replica, str(place), "-fv", "-o", "ro,poll_interval=5s"]) == 0
    assert mount_helper.mount([replica, str(place), "-f", "-o", "config=/nonexistent.yml"]) == 1
    assert mount_helper.mount([replica, str(place), "-o", "ro"]) == 1
    assert mount_helper.umount([str(place)]) == 1
    assert mount_helper.umount(["-l"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "mount.litereplica",
        f"litereplica mount --poll-interval=5s -- {replica} {place}",
        "mount.litereplica",
        "litereplica",
        "litereplica",
        "umount.litereplica",
    ], json.dumps(lines)
    assert FAILED not in mount_helper.CODES.values()
