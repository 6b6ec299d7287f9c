"""The layers of docs/ARCHITECTURE.md, as the imports of every module tell them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "litereplica"

# What each package may import of ours, besides itself. A package that is not named here fails the test.
ALLOWED = {
    "errors": set(),
    "types": set(),
    "concurrent": {"errors"},
    "format": {"errors", "types"},
    "storage": {"errors", "types", "concurrent"},
    "difference": {"errors", "types", "format"},
    "ltxstore": {"errors", "types", "concurrent", "storage", "format"},
    "restore": {"errors", "types", "concurrent", "storage", "format", "ltxstore", "history"},
    "compaction": {"errors", "types", "concurrent", "storage", "format", "ltxstore", "restore"},
    "history": {"errors", "types", "concurrent", "storage", "format", "ltxstore", "restore", "compaction"},
    "replica": {"errors", "types", "concurrent", "storage", "format", "ltxstore", "compaction", "history"},
    "writer": {"errors", "types", "concurrent", "storage", "format", "ltxstore", "compaction", "restore"},
    "config": {"errors", "types", "storage", "compaction", "writer"},
    "fuse": {"errors", "types", "format", "replica"},
    "cli": {
        "errors",
        "types",
        "concurrent",
        "storage",
        "format",
        "ltxstore",
        "restore",
        "compaction",
        "history",
        "replica",
        "writer",
        "config",
        "fuse",
        "difference",
    },
}
# The writer's wings, lowest first; modules of the writer itself, and fleet, may use them all.
WINGS = ("database", "publish", "resume")
ABOVE_THE_WINGS = {"replicator", "maintenance", "fleet"}
NOT_SANS_IO = {"os", "io", "time", "logging", "trio", "boto3", "sqlite3", "apsw", "pathlib", "socket", "threading"}


def imported(path: Path) -> set[str]:
    """Absolute names of every module or attribute that the file imports, wherever in it."""
    names = set()
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def files_of(layer: str) -> list[Path]:
    module = PACKAGE / f"{layer}.py"
    return [module] if module.exists() else sorted((PACKAGE / layer).rglob("*.py"))


def test_every_package_and_module_has_a_layer() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__", "__main__"} == set(ALLOWED)


@pytest.mark.parametrize("layer", ALLOWED)
def test_layer_imports_only_what_is_below_it(layer: str) -> None:
    files = files_of(layer)
    assert files, f"no file looked at in {layer}"
    for path in files:
        ours = {name.split(".")[1] for name in imported(path) if name.startswith("litereplica.")}
        assert ours - {layer, "__version__"} <= ALLOWED[layer], path


def test_format_does_no_input_or_output() -> None:
    files = files_of("format")
    assert files
    for path in files:
        assert not {name.split(".")[0] for name in imported(path)} & NOT_SANS_IO, path


@pytest.mark.parametrize("wing", WINGS)
def test_wing_of_the_writer_imports_only_lower_wings(wing: str) -> None:
    files = files_of(f"writer/{wing}")
    assert files
    higher = {*WINGS[WINGS.index(wing) + 1 :], *ABOVE_THE_WINGS}
    for path in files:
        ours = {name.split(".")[2] for name in imported(path) if name.startswith("litereplica.writer.")}
        assert not ours & higher, path


def test_replicator_and_maintenance_do_not_import_fleet() -> None:
    for module in ("replicator", "maintenance"):
        names = imported(PACKAGE / "writer" / f"{module}.py")
        assert not [name for name in names if name.startswith("litereplica.writer.fleet")], module
