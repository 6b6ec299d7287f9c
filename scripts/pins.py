"""The pinned packages of this project: their licences, and whether a newer patch of one is to be had.

pins.py licences            print THIRD_PARTY.md, from the packages that are installed
pins.py newest FILE…        ask the registry, through pip, for newer patches of what the files pin
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).parents[1]
RUNTIME = ROOT / "requirements.txt"

HELD_BACK: dict[str, str] = {}
"""Packages of which an older patch is pinned, and why. An entry that is no longer needed is an error."""

HEADER = """# Third-party packages

What a litereplica installation contains besides litereplica itself: the packages that `requirements.txt` pins, with the
licences that they state. Made by `scripts/licences`; a release has the same list as an SBOM in CycloneDX format.

| package | version | licence | home |
|---|---|---|---|
"""

_LICENCE_CLASSIFIER = "License :: OSI Approved :: "
_HOMES = ("homepage", "home", "repository", "source", "source code", "github")
_LONGEST_NAME = 60
"""Longer texts in the old field `License` are the licence itself."""


def pins(path: Path) -> dict[str, Version]:
    """Return the versions that a requirements file pins, by name."""
    lines = [line.removesuffix("\\") for line in path.read_text().splitlines() if re.match("[A-Za-z]", line)]
    return {pin.name: Version(str(pin.specifier).removeprefix("==")) for pin in map(Requirement, lines)}


def newest_patch(pinned: Version, available: Iterable[str]) -> Version:
    """Return the newest release with the same first two numbers as `pinned`."""
    newest = pinned
    for text in available:
        try:
            version = Version(text)
        except InvalidVersion:
            continue
        if version.release[:2] == pinned.release[:2] and not version.is_prerelease:
            newest = max(newest, version)
    return newest


def licence_of(package: metadata.PackageMetadata) -> str:
    """Return the licence that a package states: as an SPDX expression if it has one."""
    expression = _field(package, "License-Expression")
    if expression:
        return expression
    classifiers = [each.removeprefix(_LICENCE_CLASSIFIER) for each in package.get_all("Classifier") or []
                   if each.startswith(_LICENCE_CLASSIFIER)]  # fmt: skip
    stated = _field(package, "License").strip()
    if 0 < len(stated) <= _LONGEST_NAME and "\n" not in stated:
        return stated
    return " and ".join(classifiers) or stated.split("\n")[0]


def home_of(package: metadata.PackageMetadata) -> str:
    """Return the address of a package's home; empty if it states none."""
    urls = dict(each.split(", ", 1) for each in package.get_all("Project-URL") or [])
    by_name = {name.lower(): url for name, url in urls.items()}
    return next(
        (by_name[name] for name in _HOMES if name in by_name),
        _field(package, "Home-page") or next(iter(urls.values()), ""),
    )


def _field(package: metadata.PackageMetadata, name: str) -> str:
    return package[name] if name in package else ""  # noqa: SIM401 - mypy knows no get()


def licences() -> str:
    """Return the text of THIRD_PARTY.md. Raises `ValueError` for a package that states no licence."""
    rows = []
    for name, version in sorted(pins(RUNTIME).items()):
        package = metadata.metadata(name)
        if Version(package["Version"]) != version:
            raise ValueError(f"{name} {package['Version']} is installed, {version} is pinned: run scripts/setup --dev")
        licence = licence_of(package)
        if not licence:
            raise ValueError(f"{name} states no licence")
        rows.append(f"| {name} | {version} | {licence} | {home_of(package)} |\n")
    return HEADER + "".join(rows)


def outdated(files: Iterable[Path]) -> list[str]:
    """Return a line for each pin of which a newer patch is available, and for each needless entry of `HELD_BACK`."""
    found, needed = [], set()
    pinned = {name: version for file in files for name, version in pins(file).items()}
    for name, version in sorted(pinned.items()):
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", name]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        listed = re.search(r"^Available versions: (.*)$", answer, re.MULTILINE)
        newest = newest_patch(version, listed[1].split(", ") if listed else [])
        if newest > version:
            needed.add(name)
            if name not in HELD_BACK:
                found.append(
                    f"{name} {version} is pinned, {newest} is available: run scripts/lock, or add it to HELD_BACK"
                )
    return found + [f"{name} is in HELD_BACK for nothing" for name in HELD_BACK if name not in needed]


def main(arguments: list[str]) -> int:
    """Run a command; returns the exit code."""
    match arguments:
        case ["licences"]:
            sys.stdout.write(licences())
        case ["newest", *names] if names:
            problems = outdated(map(Path, names))
            print("\n".join(problems) or "every pin is the newest patch of its version")
            return 1 if problems else 0
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
