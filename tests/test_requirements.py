"""The pinned requirements are those of pyproject.toml, whole and from nowhere in particular."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILES = ["requirements.txt", "requirements-dev.txt", "requirements-build.txt"]


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
