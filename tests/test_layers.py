"""The structure of the package: layers, import circles, sizes, and attributes that belong to one object.

`PENDING_…` lists exceptions that wait to be mended. They only shrink: an entry that is no longer needed fails the test.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterable

import pytest

from tests.helpers.package_source import PACKAGE, Function, Module, decorators, is_own, modules

MODULES = modules()

# The packages and top modules that each one may import, besides itself. A package that is not named here fails.
ALLOWED = {
    "errors": set(),
    "times": set(),
    "runs": set(),
    "file_events": set(),
    "file_access": {"errors"},
    "file_io": set(),
    "file_locks": set(),
    "memory": set(),
    "foreign_database": set(),
    "foreign_directory": {"errors"},
    "types": set(),
    "log_levels": set(),
    "printable": set(),
    "concurrent": {"errors"},
    "format": {"errors", "types", "times"},
    "storage": {"file_access", "file_events", "errors", "types", "times", "memory", "concurrent"},
    "difference": {"errors", "foreign_database", "types", "times", "runs", "format"},
    "ltxstore": {"errors", "file_events", "types", "times", "memory", "concurrent", "storage", "format"},
    "restore": {
        "file_access",
        "errors",
        "foreign_database",
        "foreign_directory",
        "types",
        "times",
        "memory",
        "file_io",
        "file_locks",
        "concurrent",
        "storage",
        "format",
        "ltxstore",
        "history",
    },
    "compaction": {"errors", "foreign_directory", "types", "times", "concurrent", "storage", "format", "ltxstore"},
    "history": {"errors", "types", "times", "concurrent", "storage", "format", "ltxstore"},
    "replica": {
        "file_access",
        "errors",
        "file_events",
        "types",
        "times",
        "runs",
        "concurrent",
        "storage",
        "format",
        "ltxstore",
        "history",
    },
    "control": {"errors", "foreign_directory", "times"},
    "web": {"control", "errors", "printable", "times"},
    "writer": {
        "file_access",
        "control",
        "errors",
        "foreign_database",
        "foreign_directory",
        "types",
        "times",
        "runs",
        "file_events",
        "file_io",
        "file_locks",
        "concurrent",
        "storage",
        "format",
        "ltxstore",
        "compaction",
        "restore",
    },
    "config": {"control", "file_access", "errors", "log_levels", "types", "times", "storage", "compaction", "writer"},
    "fuse": {"control", "web", "errors", "file_locks", "types", "times", "runs", "concurrent", "format", "replica"},
    "cli": {
        "control",
        "printable",
        "web",
        "file_access",
        "errors",
        "log_levels",
        "foreign_directory",
        "types",
        "times",
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
    "testing": {"errors", "types", "times", "concurrent", "storage", "format", "ltxstore", "fuse"},
}

WRITER_WINGS = ["database", "publish", "resume", "", "fleet"]
"""Wings of the writer, each importing only those before it. The empty name: the modules directly in `writer/`."""

NOT_SANS_IO = {"os", "io", "time", "logging", "trio", "boto3", "sqlite3", "apsw", "pathlib", "socket", "threading"}

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_CONSTRUCTOR_ARGUMENTS = 8

PENDING_CIRCLES: set[str] = set()
PENDING_WINGS: set[str] = set()
PENDING_LONG_MODULES: set[str] = set()
PENDING_LONG_FUNCTIONS: set[str] = set()
PENDING_CONSTRUCTORS: set[str] = set()
PENDING_ASSIGNMENTS: set[str] = set()

OTHERS_ATTRIBUTES = {"cli/logging_setup.py: record.message"}
"""Attributes of another library's objects that share a name with one of ours."""


def require(found: Iterable[str], *, pending: set[str]) -> None:
    """Fail for anything found that is not pending, and for what is pending but was not found."""
    found = set(found)
    assert not found - pending, "new findings"
    assert not pending - found, "mended: remove these entries from the list of exceptions in tests/test_layers.py"


def layer_of(module: Module) -> str:
    """The package or top module below `litereplica` that a module belongs to."""
    return module.where.split("/")[0].removesuffix(".py")


def of_layer(layer: str) -> list[Module]:
    return [module for module in MODULES if layer_of(module) == layer]


# --- imports ---------------------------------------------------------------------------------------------------------


def test_every_package_and_module_has_a_layer() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__", "__main__"} == set(ALLOWED)


@pytest.mark.parametrize("layer", ALLOWED)
def test_layer_imports_only_what_is_below_it(layer: str) -> None:
    files = of_layer(layer)
    assert files, f"no file looked at in {layer}"
    for module in files:
        ours = {name.split(".")[1] for name in module.imported() if name.startswith("litereplica.")}
        assert ours - {layer, "__version__"} <= ALLOWED[layer], module.where


def test_layers_have_an_order() -> None:
    assert list(graphlib.TopologicalSorter(ALLOWED).static_order())


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions and for type checking count."""
    names = {module.name for module in MODULES}
    graph = {
        module.name: {own(name, names) for name in module.imported()} & names - {module.name} for module in MODULES
    }
    edges = {f"{importer} -> {name}" for importer, found in graph.items() for name in found}
    assert not PENDING_CIRCLES - edges, "mended: remove these entries from PENDING_CIRCLES"
    for edge in PENDING_CIRCLES:
        importer, name = edge.split(" -> ")
        graph[importer].remove(name)
    assert list(graphlib.TopologicalSorter(graph).static_order())


def own(name: str, names: set[str]) -> str:
    """The module that an imported name stands for: itself, or the one that defines it."""
    return name if name in names else name.rpartition(".")[0]


def test_wings_of_the_writer_import_only_what_is_below_them() -> None:
    found = set()
    for module in of_layer("writer"):
        where = module.where.removeprefix("writer/")
        wing = where.rpartition("/")[0]
        allowed = set(WRITER_WINGS[: WRITER_WINGS.index(wing) + 1])
        for name in module.imported():
            if name.startswith("litereplica.writer."):
                first = name.split(".")[2]
                imported_wing = first if first in WRITER_WINGS else ""
                if imported_wing not in allowed:
                    found.add(f"{where} -> {imported_wing or first}")
    require(found, pending=PENDING_WINGS)


def test_format_does_no_input_or_output() -> None:
    files = of_layer("format")
    assert files
    for module in files:
        assert not {name.split(".")[0] for name in module.imported()} & NOT_SANS_IO, module.where


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_no_module_is_too_long() -> None:
    lines = {module.where: len(module.path.read_text().splitlines()) for module in MODULES}
    require((where for where, count in lines.items() if count > MAX_MODULE_LINES), pending=PENDING_LONG_MODULES)


def test_no_function_is_too_long() -> None:
    found = {
        f"{module.where}: {function.name}"
        for module in MODULES
        for function in module.functions()
        if function_lines(function) > MAX_FUNCTION_LINES
    }
    require(found, pending=PENDING_LONG_FUNCTIONS)


def function_lines(function: Function) -> int:
    """Lines without decorators and docstring, and without the signature of a command, which lists its options."""
    first, body = function.body[0], function.body
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        body = body[1:]
    if not body:
        return 0
    assert body[-1].end_lineno is not None
    lines = body[-1].end_lineno - body[0].lineno + 1
    is_command = any("click" in decorator for decorator in decorators(function))
    return lines if is_command else lines + first.lineno - function.lineno


def test_no_constructor_takes_too_many_arguments() -> None:
    """Frozen dataclasses are records, which have as many fields as they have facts."""
    found = {
        f"{module.where}: {each.name}"
        for module in MODULES
        for each in module.classes()
        if constructor_arguments(each) > MAX_CONSTRUCTOR_ARGUMENTS
    }
    require(found, pending=PENDING_CONSTRUCTORS)


def constructor_arguments(each: ast.ClassDef) -> int:
    for node in each.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]) - 1
    dataclass = "".join(name for name in decorators(each) if name.startswith("dataclass"))
    if not dataclass or "frozen=True" in dataclass:
        return 0
    fields = [ast.unparse(node) for node in each.body if isinstance(node, ast.AnnAssign)]
    return len([field for field in fields if "init=False" not in field and "ClassVar" not in field])


# --- attributes ------------------------------------------------------------------------------------------------------


def test_an_attribute_is_assigned_only_by_its_own_module() -> None:
    """`x.y = …` with a private `y` is for `self` alone; with a public one, for the module whose class has it."""
    attributes = {module.where: module.attributes() for module in MODULES}
    ours = set().union(*attributes.values())
    found = set()
    for module in MODULES:
        for attribute in module.assigned():
            name = attribute.attr
            if is_own(attribute) or name not in ours:
                continue
            if name.startswith("_") or name not in attributes[module.where]:
                found.add(f"{module.where}: {ast.unparse(attribute)}")
    require(found - OTHERS_ATTRIBUTES, pending=PENDING_ASSIGNMENTS)


def test_benchmarks_and_the_product_do_not_import_tests() -> None:
    scripts = sorted((PACKAGE.parent / "scripts").rglob("*.py"))
    assert scripts
    for path in [*scripts, *(module.path for module in MODULES)]:
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.module if isinstance(node, ast.ImportFrom) else None
            assert not (name or "").startswith("tests"), path
