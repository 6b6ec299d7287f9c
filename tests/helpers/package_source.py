"""The package's source as syntax trees, for tests of its structure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "litereplica"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One file of the package. `name` is its dotted name; `where` its path below the package."""

    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text())

    @property
    def where(self) -> str:
        return str(self.path.relative_to(PACKAGE))

    @property
    def name(self) -> str:
        parts = self.path.relative_to(PACKAGE.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def imported(self) -> set[str]:
        """Absolute names of all modules and attributes that the file imports, inside functions too."""
        names: set[str] = set()
        package = self.path.relative_to(PACKAGE.parent).parent.parts
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = list(package[: len(package) - node.level + 1]) if node.level else []
                module = ".".join([*base, *filter(None, [node.module])])
                names.update(f"{module}.{alias.name}" for alias in node.names)
        return names

    def functions(self) -> Iterator[Function]:
        """All functions and methods, nested ones too."""
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def classes(self) -> Iterator[ast.ClassDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))

    def attributes(self) -> set[str]:
        """Names of the attributes that the module's classes declare or assign to `self`, and of their setters."""
        names = {
            node.target.id
            for node in ast.walk(self.tree)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        names |= {attribute.attr for attribute in self.assigned() if is_own(attribute)}
        return names | {
            function.name for function in self.functions() if any("setter" in name for name in decorators(function))
        }

    def assigned(self) -> Iterator[ast.Attribute]:
        """Every attribute that a statement of the module assigns or deletes: the `x.y` of `x.y = …`."""
        return (n for n in ast.walk(self.tree) if isinstance(n, ast.Attribute) and not isinstance(n.ctx, ast.Load))


def is_own(attribute: ast.Attribute) -> bool:
    """True for an attribute of `self` or `cls`."""
    return isinstance(attribute.value, ast.Name) and attribute.value.id in ("self", "cls")


def decorators(node: Function | ast.ClassDef) -> list[str]:
    """Source of each decorator."""
    return [ast.unparse(decorator) for decorator in node.decorator_list]


def modules() -> list[Module]:
    return [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]
