"""The documentation names tests and modules that exist, and its links lead to files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PACKAGE = ROOT / "litereplica"


def test_each_statement_of_the_semantics_names_tests_that_exist() -> None:
    rows = [line for line in (ROOT / "docs/SEMANTICS.md").read_text().splitlines() if line.startswith("| ")][1:]
    statements = [row for row in rows if not row.startswith("| **")]
    assert len(statements) > 20
    for row in statements:
        named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", row.split("|")[2])
        assert named, row
        for file, test in named:
            text = (ROOT / "tests" / file).read_text()
            assert re.search(rf"def {test}\(" if test else r"def test_\w+\(", text), f"{file}::{test}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_modules_that_documents_name_exist(document: Path) -> None:
    """`a/b.py` is below litereplica/ or tests/ or the root; a bare `b.py` anywhere in the package or the tests."""
    for named in re.findall(r"`([\w./-]+\.py)\b", document.read_text()):
        places = [ROOT / named, ROOT / "litereplica" / named, ROOT / "tests" / named]
        assert any(place.exists() for place in places) or ("/" not in named and _found(named)), named


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_that_comments_and_docstrings_name_exist(module: Path) -> None:
    """A path is below the package, the root, or the module's own directory; a bare name anywhere."""
    for named in re.findall(r"`([\w./-]+\.py)\b", module.read_text()):
        places = [ROOT / named, PACKAGE / named, module.parent / named, *PACKAGE.rglob(named)]
        assert any(place.exists() for place in places), named


def _found(name: str) -> bool:
    return any(next((ROOT / room).rglob(name), None) is not None for room in ("litereplica", "tests", "scripts"))
