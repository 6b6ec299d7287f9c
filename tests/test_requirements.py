"""The pinned requirements are those of pyproject.toml, whole and from nowhere in particular."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pins import licences, newest_patch

ROOT = Path(__file__).parents[1]
FILES = ["requirements.txt", "requirements-dev.txt", "requirements-build.txt", "requirements-release.txt"]


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def pins(name: str) -> dict[str, str]:
    """Versions by canonical name."""
    lines = (ROOT / name).read_text().splitlines()
    found = [Requirement(line.removesuffix("\\")) for line in lines if re.match(r"[A-Za-z]", line)]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in found}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("requirements.txt", project()["project"]["dependencies"]),
        ("requirements-dev.txt", project()["project"]["dependencies"]),
        ("requirements-dev.txt", project()["project"]["optional-dependencies"]["dev"]),
        ("requirements-build.txt", project()["build-system"]["requires"]),
    ],
)
def test_every_requirement_of_the_project_is_pinned_to_a_version_it_allows(name: str, wanted: list[str]) -> None:
    pinned = pins(name)
    assert wanted
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_tests_run_with_the_versions_that_users_have() -> None:
    assert pins("requirements.txt").items() <= pins("requirements-dev.txt").items()


@pytest.mark.parametrize("name", FILES)
def test_pins_are_hashed_and_name_no_place(name: str) -> None:
    text = (ROOT / name).read_text()
    hashed = re.findall(r"^[A-Za-z].*\\\n(?: +--hash=sha256:[0-9a-f]{64}.*\n)+", text, re.MULTILINE)
    assert len(hashed) == len(pins(name)) > 0
    assert not re.search(r"://|^-|--(index|find|trusted|extra)", text, re.MULTILINE)


def test_third_party_packages_are_listed_with_their_licences() -> None:
    text = (ROOT / "THIRD_PARTY.md").read_text()
    rows = re.findall(r"^\| ([A-Za-z0-9._-]+) \| ([0-9][^ ]*) \| ([^|]*[^| ][^|]*) \|", text, re.MULTILINE)
    listed = {canonicalize_name(name): version for name, version, _ in rows}
    assert listed == pins("requirements.txt"), "run scripts/licences"
    assert text == licences(), "run scripts/licences"


def test_newest_patch_is_that_of_the_pinned_minor_version() -> None:
    available = ["2.0.0", "1.10.0", "1.9.12", "1.9.13rc1", "1.9.9", "1.9.12.post1", "1.8.99", "not a version"]
    assert str(newest_patch(Version("1.9.9"), available)) == "1.9.12.post1"
    assert str(newest_patch(Version("3.1"), available)) == "3.1"
    assert str(newest_patch(Version("1.9.99"), available)) == "1.9.99"


def test_release_and_lock_know_every_file_of_pins() -> None:
    lock, release = ((ROOT / "scripts" / name).read_text() for name in ("lock", "release"))
    for name in FILES:
        assert f"--output-file {name}" in lock
        assert name in release or name == "requirements-dev.txt"
