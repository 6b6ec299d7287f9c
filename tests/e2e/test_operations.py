"""docs/OPERATIONS.md as a new operator does it: its lines, the units of deploy/, under a real systemd.

The link to the store is cut by taking the machine's loopback down; the control sockets are Unix sockets.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from litereplica.errors import ExitCode
from litereplica.replica.poll_status import SLOW_POLL_S
from tests.helpers.promtool import needs_promtool, require_alerts
from tests.helpers.systemd_machine import SystemdMachine, can_boot, systemd_machine

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_boot(), reason="needs root, systemd and namespaces")]

ROOT = Path(__file__).parents[2]
VENV = Path(sys.prefix)
PORT = 8333
URL = f"s3://litereplica/app.db?endpoint=http://127.0.0.1:{PORT}&region=us-east-1"
WRITER, MOUNT = "litereplica", "litereplica-mount@app"
AS_APP = "setpriv --reuid app --regid app --clear-groups"
MAX_LAG_S, POLL_INTERVAL_S, NOTICED_S = 2, 1, 5  # of docs/OPERATIONS.md, and the default of a mount
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


def steps() -> dict[str, str]:
    """The blocks of the section, by the first words of their comment."""
    text = (ROOT / "docs" / "OPERATIONS.md").read_text()
    section = text.split("## From a database to a watched replica\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n# ([\w ]+).*?\n(.*?)```", section, re.DOTALL)
    return {title.strip(): f"set -x\n{block}" for title, block in blocks}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdMachine]:
    """A machine on which the operator has done what the section says."""
    with systemd_machine(tmp_path_factory.mktemp("machine")) as machine:
        machine.run(
            f"""
            rm -rf /opt/litereplica
            ln -s {VENV} /opt/litereplica
            useradd --system --user-group app
            mkdir -p {VENV}/share/litereplica
            install -d -m 0700 -o app -g app /srv/app
            cp -r {ROOT}/deploy/* {VENV}/share/litereplica/
            {AS_APP} sqlite3 /srv/app/app.db '
                PRAGMA journal_mode=wal; CREATE TABLE orders (x); INSERT INTO orders VALUES (1)'
            PATH={VENV}/bin:$PATH {ROOT}/scripts/provision-store --port {PORT} --state-dir /var/lib/store
            """,
            variables=KEYS,
        )
        todo = steps()
        assert list(todo) == ["what is yours", "the writer", "the reader", "is all well"]
        for title in list(todo)[1:]:
            machine.run(todo[title], variables={"REPLICA_URL": URL} | KEYS)
        yield machine


def said(machine: SystemdMachine, script: str) -> str:
    return machine.run(script).stdout.strip()


def shown(machine: SystemdMachine, unit: str, *names: str) -> list[str]:
    return [said(machine, f"systemctl show --property {name} --value {unit}") for name in names]


def test_services_run_as_their_users_and_everybody_reads_the_mount(watched: SystemdMachine) -> None:
    assert shown(watched, WRITER, "ActiveState", "User", "StatusText") == ["active", "app", "1 active"]
    assert shown(watched, MOUNT, "ActiveState", "User") == ["active", ""]
    assert shown(watched, MOUNT, "StatusText")[0].split()[1:3] == ["at", "TXID"]
    records = json.loads(said(watched, "litereplica status --json"))["databases"]
    assert sorted((each["kind"], each["db_path"]) for each in records) == [
        ("mount", "/mnt/app/app.db"),
        ("writer", "/srv/app/app.db"),
    ]
    query = "sqlite3 -readonly /mnt/app/app.db 'SELECT x FROM orders'"
    assert said(watched, f"setpriv --reuid nobody --regid nogroup --clear-groups {query}") == "1"
    watched.run(f"systemctl reload {WRITER} {MOUNT}")
    assert [*shown(watched, WRITER, "SubState"), *shown(watched, MOUNT, "SubState")] == ["running", "running"]


def scraped(machine: SystemdMachine, port: int) -> dict[str, float]:
    """The series that Prometheus has of a daemon, with their values."""
    instance, found = f"localhost:{port}", {f'up{{job="litereplica", instance="localhost:{port}"}}': 1.0}
    for family in text_string_to_metric_families(said(machine, f"curl -sSf {instance}/metrics") + "\n"):
        for sample in family.samples:
            labels = {"job": "litereplica", "instance": instance, **sample.labels}
            written = ", ".join(f"{name}={json.dumps(value)}" for name, value in labels.items())
            found[f"{sample.name}{{{written}}}"] = sample.value
    return found


@needs_promtool
def test_alerts_are_silent_for_what_is_scraped_and_fire_when_it_lags(watched: SystemdMachine, tmp_path: Path) -> None:
    series = scraped(watched, 9090) | scraped(watched, 9091)
    require_alerts(tmp_path, series, {})
    lags = {each: 61.0 for each in series if each.startswith("litereplica_lag_seconds") and "/srv/app" in each}
    assert len(lags) == 1
    labels = {"job": "litereplica", "instance": "localhost:9090", "db": "/srv/app/app.db", "severity": "warning"}
    told = {
        "summary": "/srv/app/app.db is 1m 1s behind",
        "description": "What was committed since then would be lost with the primary, or is not seen by readers of the"
        " mount.",
    }
    require_alerts(tmp_path, series | lags, {"LitereplicaLag": {"exp_labels": labels, "exp_annotations": told}})


def test_cut_link_makes_the_services_unhealthy_until_it_is_back(watched: SystemdMachine) -> None:
    assert POLL_INTERVAL_S + SLOW_POLL_S < NOTICED_S, "the promise of the documentation"
    probe = f"litereplica health --max-lag {MAX_LAG_S}s"
    watched.run(probe)
    watched.run(f"ip link set lo down; {AS_APP} sqlite3 /srv/app/app.db 'INSERT INTO orders VALUES (2)'")
    cut_at = time.monotonic()
    for subject in ("/srv/app/app.db", "/mnt/app"):
        watched.wait_for(f"{probe} {subject} || [ $? -eq {ExitCode.NOT_REACHED:d} ] && ! {probe} {subject}")
        print(
            f"health of {subject} failed {time.monotonic() - cut_at:.1f} s after the cut"
        )  # docs/OPERATIONS.md has it
    watched.run("ip link set lo up")
    watched.wait_for(probe)
    for port in (9090, 9091):
        watched.run(f"curl -sSf 'http://localhost:{port}/health?max-lag={MAX_LAG_S}s'")
    watched.wait_for("[ $(sqlite3 -readonly /mnt/app/app.db 'SELECT count(*) FROM orders') = 2 ]")


def test_daemon_that_hangs_is_ended_by_the_watchdog_and_mounts_again(watched: SystemdMachine) -> None:
    watched.run(
        f"""
        mkdir -p /etc/systemd/system/{MOUNT}.service.d
        printf '[Service]\nWatchdogSec=2s\nRestartSec=100ms\n' >/etc/systemd/system/{MOUNT}.service.d/fast.conf
        systemctl daemon-reload
        systemctl restart {MOUNT}
        kill -STOP $(systemctl show --property MainPID --value {MOUNT})
        """
    )
    watched.wait_for(f"[ $(systemctl show --property NRestarts --value {MOUNT}) -ge 1 ]")
    watched.wait_for("timeout 5 sqlite3 -readonly /mnt/app/app.db 'SELECT x FROM orders'")
    watched.run(f"rm /etc/systemd/system/{MOUNT}.service.d/fast.conf; systemctl daemon-reload")


def test_mount_unit_and_service_of_another_user_mount_for_all(watched: SystemdMachine) -> None:
    query, what = "sqlite3 -readonly {} 'SELECT count(*) > 0 FROM orders'", URL.replace("&", "\\&")
    watched.run(
        f"""
        mkdir -p /root/.aws /mnt/unit /mnt/user /etc/systemd/system/litereplica-mount@user.service.d
        printf '[default]\naws_access_key_id=key\naws_secret_access_key=secret\n' >/root/.aws/credentials
        sed -e 's|/mnt/app|/mnt/unit|; s|^What=.*|What={what}|; s|,config=.*|,name=app.db|' \\
            /opt/litereplica/share/litereplica/systemd/mnt-app.mount >/etc/systemd/system/mnt-unit.mount
        sed 's|/mnt/app|/mnt/user|' /etc/litereplica/app.env >/etc/litereplica/user.env
        sed 's|^User=.*|User=litereplica|' /opt/litereplica/share/litereplica/systemd/mount-as-user.conf \\
            >/etc/systemd/system/litereplica-mount@user.service.d/user.conf
        chown litereplica /mnt/user
        echo user_allow_other >>/etc/fuse.conf
        systemctl daemon-reload
        systemctl start mnt-unit.mount litereplica-mount@user
        """
    )
    assert [said(watched, query.format(f"/mnt/{each}/app.db")) for each in ("user", "unit")] == ["1", "1"]
    assert shown(watched, "litereplica-mount@user", "User") == ["litereplica"]
    assert "/mnt/user" in said(watched, "litereplica status")
    watched.run("systemctl stop litereplica-mount@user mnt-unit.mount; ! grep -E '/mnt/(user|unit)' /proc/self/mounts")
