"""The files of deploy/ that systemd reads: what they must and must not say, here and as the provisioning makes them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNITS = ROOT / "deploy" / "systemd"
WRITER, MOUNT, AS_USER = "litereplica.service", "litereplica-mount@.service", "mount-as-user.conf"
LIBRARY = 'set -euo pipefail; . scripts/lib.sh; . scripts/lib-provision.sh; "$@"'

MOUNT_NAMESPACE = [
    "ProtectSystem",
    "PrivateTmp",
    "PrivateDevices",
    "ProtectHome",
    "ProtectKernel",
    "ProtectControlGroups",
    "ReadWritePaths",
    "ReadOnlyPaths",
    "InaccessiblePaths",
    "ExecPaths",
    "BindPaths",
    "BindReadOnlyPaths",
    "TemporaryFileSystem",
    "PrivateMounts",
    "MountFlags",
    "ProtectProc",
    "ProcSubset",
    "RootDirectory",
    "RootImage",
    "DynamicUser",
    "ProtectHostname",
]
"""Directives that give a service a mount namespace of its own, or slave propagation: systemd.exec(5)."""

NO_NEW_PRIVILEGES = [
    "NoNewPrivileges",
    "SystemCall",
    "Restrict",
    "LockPersonality",
    "MemoryDenyWriteExecute",
    "PrivateDevices",
    "ProtectKernel",
    "ProtectClock",
    "ProtectHostname",
]
"""Those that switch new privileges off for a service of another user than root."""

Directives = dict[str, list[str]]


def directives(*files: Path) -> Directives:
    """The directives of a unit and its drop-ins: an empty value, and `no`, take back what was said before."""
    found: Directives = {}
    for file in files:
        for line in file.read_text().splitlines():
            name, is_one, value = line.partition("=")
            if not is_one or line.startswith("#"):
                continue
            if value in ("", "no", "~"):
                found[name] = []
            found.setdefault(name, []).extend([] if value in ("", "no", "~") else [value])
    return {name: values for name, values in found.items() if values or name == "CapabilityBoundingSet"}


def provisioned(directory: Path, unit: str, user: str, writes: str, *command: str) -> Directives:
    """The directives of a unit that the provisioning scripts make in `directory`."""
    arguments = ["write_unit", str(directory), unit, user, writes, "/x.env", *command]
    subprocess.run(["bash", "-c", LIBRARY, "test", *arguments], check=True, cwd=ROOT, timeout=60)
    return directives(directory / f"{unit}.service", *sorted((directory / f"{unit}.service.d").iterdir()))


def test_unit_of_a_mount_has_nothing_that_hides_it_or_keeps_fusermount_from_working(tmp_path: Path) -> None:
    as_root, as_user = directives(UNITS / MOUNT), directives(UNITS / MOUNT, UNITS / AS_USER)
    made = provisioned(tmp_path, "litereplica-replica", "app", "mount", "/bin/cat")
    assert made["User"] == ["app", "app"]
    for found in (as_root, as_user, made):
        assert not [name for name in found if name.startswith(tuple(MOUNT_NAMESPACE))]
        assert found["Type"] == ["notify"] or found is made
        assert {"UMask", "WatchdogSec", "WantedBy", "EnvironmentFile"} <= set(found) or found is made
    assert as_root["NoNewPrivileges"] == ["yes"]
    for found in (as_user, made):
        assert not [name for name in found if name.startswith(tuple(NO_NEW_PRIVILEGES))]
        assert found["CapabilityBoundingSet"] == []


def test_unit_of_a_writer_is_confined_to_its_directories(tmp_path: Path) -> None:
    found = directives(UNITS / WRITER)
    expected = {"Type": "notify", "ProtectSystem": "strict", "NoNewPrivileges": "yes", "UMask": "0077"}
    expected |= {"After": "network-online.target", "WantedBy": "multi-user.target", "RestartPreventExitStatus": "7"}
    assert {name: found[name] for name in expected} == {name: [value] for name, value in expected.items()}
    assert found["RuntimeDirectory"] == ["litereplica/%p"]
    litereplica = str(ROOT / ".venv/bin/litereplica")
    made = provisioned(tmp_path, "litereplica-primary", "app", '"/srv/a b" "/srv/50%"', litereplica, 'a"b', "$x%")
    assert made["ReadWritePaths"] == ['"/srv/a b" "/srv/50%%"']
    assert made["ExecStart"] == [rf'"{litereplica}" "a\"b" "$$x%%"']
    assert (made["EnvironmentFile"], made["User"], made["Type"]) == (["-/x.env"], ["litereplica", "app"], ["notify"])
    store = provisioned(tmp_path, "litereplica-store", "app", '"/srv"', "/bin/cat")
    assert store["Type"] == ["notify", "exec"]
    assert "ExecReload" not in store


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    """Here the program and its manual are not installed, which `verify` says, too."""
    for file in UNITS.iterdir():
        shutil.copy(file, tmp_path / file.name.replace("@.", "@app."))
    provisioned(tmp_path, "litereplica-store", "daemon", '"/srv"', "/bin/cat")
    units = sorted(path for path in tmp_path.iterdir() if path.suffix in (".service", ".mount"))
    assert [unit.name for unit in units] == [
        "litereplica-mount@app.service",
        "litereplica-store.service",
        WRITER,
        "mnt-app.mount",
    ]
    for unit in units:
        text = unit.read_text().replace("/usr/local/bin/litereplica", "/bin/true")
        unit.write_text("\n".join(line for line in text.splitlines() if not line.startswith("Documentation=")))
        verify = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
        assert (verify.returncode, verify.stderr) == (0, ""), unit.name
    for name, worst in ((WRITER, 2.0), ("litereplica-store.service", 2.0), ("litereplica-mount@app.service", 7.5)):
        command = [
            "systemd-analyze",
            "security",
            "--offline=true",
            f"--threshold={worst * 10:.0f}",
            str(tmp_path / name),
        ]
        security = subprocess.run(command, capture_output=True, text=True, check=False)
        assert security.returncode == 0, security.stdout
