"""The examples for containers: what a schema would find, and that litereplica understands its command lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from litereplica.cli.main import PROGRAM, cli

ROOT = Path(__file__).parents[1]
CONTAINER, KUBERNETES = ROOT / "deploy" / "container", ROOT / "deploy" / "kubernetes"
URL = "s3://backups/app.db?region=eu-west-1"

CONTAINER_FIELDS = {"name", "image", "args", "command", "envFrom", "volumeMounts", "securityContext", "resources"}
CONTAINER_FIELDS |= {"restartPolicy", "livenessProbe", "startupProbe"}


def require_command(words: list[str]) -> None:
    """Parse a command line of litereplica as the program does, without running it."""
    words = [re.sub(r"\$\(REPLICA_URL\)|\$\{REPLICA_URL[^}]*\}", URL, word) for word in words]
    with cli.make_context(PROGRAM, list(words)) as group:
        name, command, rest = cli.resolve_command(group, words)
        assert command is not None
        with command.make_context(name, rest, parent=group):
            pass


def kubernetes(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


def pod(documents: list[dict[str, Any]]) -> dict[str, Any]:
    workload = documents[0]
    assert workload["apiVersion"] == "apps/v1"
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert workload["spec"]["selector"]["matchLabels"] == labels
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def containers(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from spec["initContainers"]
    yield from spec["containers"]


@pytest.mark.parametrize("name", sorted(path.name for path in KUBERNETES.iterdir()))
def test_kubernetes_example_is_consistent_and_its_commands_are_ours(name: str) -> None:
    documents = kubernetes(name)
    for document in documents:
        assert {"apiVersion", "kind", "metadata"} <= set(document)
    spec = pod(documents)
    volumes = {each["name"] for each in spec["volumes"]}
    volumes |= {each["metadata"]["name"] for each in documents[0]["spec"].get("volumeClaimTemplates", [])}
    mounted = set()
    for each in containers(spec):
        assert set(each) <= CONTAINER_FIELDS, each["name"]
        mounted |= {mount["name"] for mount in each["volumeMounts"]}
        if each["image"] == PROGRAM:
            assert each.get("command", ["sh"])[0] == "sh"
            require_command(each["args"])
        checks = [each[name] for name in each if name.endswith("Probe")]
        assert all(check["timeoutSeconds"] >= 10 for check in checks), "one with little CPU is slow to start"
        probes = [check["exec"]["command"] for check in checks]
        for probe in probes:
            assert probe[0] == PROGRAM
            require_command(probe[1:])
    assert mounted == volumes
    named = {document["metadata"]["name"] for document in documents if document["kind"] == "Secret"}
    assert not named or {each["envFrom"][0]["secretRef"]["name"] for each in spec["initContainers"]} == named


def test_mount_of_a_pod_reaches_its_readers() -> None:
    spec = pod(kubernetes("mount-sidecar.yaml"))
    mount, reader = spec["initContainers"][0], spec["containers"][0]
    assert mount["restartPolicy"] == "Always"
    assert mount["securityContext"]["privileged"] is True
    shared = {each["name"]: each.get("mountPropagation") for each in mount["volumeMounts"]}
    seen = {each["name"]: each.get("mountPropagation") for each in reader["volumeMounts"]}
    assert (shared["replica"], seen["replica"]) == ("Bidirectional", "HostToContainer")
    assert mount["args"][2].startswith("/replica/")


def test_compose_example_is_consistent_and_its_commands_are_ours() -> None:
    document = yaml.safe_load((CONTAINER / "compose.yaml").read_text())
    named = set()
    for service in document["services"].values():
        named |= {each.split(":")[0] for each in service["volumes"] if isinstance(each, str)}
        if service["image"] == PROGRAM:
            require_command(service["command"])
            assert set(service["environment"]) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert named == set(document["volumes"])
    mount, reader = document["services"]["mount"], document["services"]["reader"]
    assert (mount["devices"], mount["cap_add"]) == (["/dev/fuse"], ["SYS_ADMIN"])
    assert mount["volumes"][0]["bind"]["propagation"] == "rshared"
    assert reader["volumes"][0]["bind"]["propagation"] == "rslave"


def test_containerfile_copies_what_is_there_and_installs_what_is_pinned() -> None:
    text = (CONTAINER / "Containerfile").read_text().replace("\\\n", " ")
    instructions = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    assert {name for name, _ in instructions} <= {"ARG", "FROM", "RUN", "COPY", "ENTRYPOINT", "HEALTHCHECK"}
    for name, rest in instructions:
        if name == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
    for wanted in ("--require-hashes -r /src/requirements-build.txt", "--require-hashes --no-build-isolation", "fuse3"):
        assert wanted in text
    check = text.split("CMD ")[1].strip()
    require_command(yaml.safe_load(check)[1:])


def test_units_and_their_examples_run_commands_that_we_have() -> None:
    for unit in (ROOT / "deploy" / "systemd").glob("*.service"):
        line = next(each for each in unit.read_text().splitlines() if each.startswith("ExecStart="))
        words = [word for word in shlex.split(line.removeprefix("ExecStart=")) if word != "$OPTIONS"]
        assert words[0] == "/usr/local/bin/litereplica"
        require_command([word.replace("${MOUNTPOINT}", "/mnt") for word in words[1:]])
