"""Only public names of other libraries are used: others may change without notice."""

import ast
import importlib
from collections.abc import Iterator
from inspect import isclass
from pathlib import Path
from types import ModuleType

import pytest

from settings import PROJECT

FOLDERS = ("", "benchmarks", "dependencies", "migrations", "migrations/versions", "routes")
FILES = sorted(file for folder in FOLDERS for file in (PROJECT / folder).glob("*.py"))
OURS = {file.stem for file in FILES} | {"dependencies", "routes", "benchmarks", "tests"}


OF_NAMED_TUPLES = {"_replace", "_asdict", "_fields"}
"""These are documented; the underscore keeps them apart from the tuple's own names."""


def is_private(name: str) -> bool:
    return name not in OF_NAMED_TUPLES and any(
        part.startswith("_") and not part.endswith("__") for part in name.split(".")
    )


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in OURS


def root(node: ast.expr) -> str | None:
    """Return the name that an expression like `a.b().c` begins with."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def private_names(tree: ast.AST) -> Iterator[str]:
    """Yield what is private in others' modules and is imported from them, or read from them."""
    foreign: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for name in node.names:
                path = f"{module}.{name.name}" if module else name.name
                if not is_ours(path):
                    foreign.add(name.asname or name.name.partition(".")[0])
                    if is_private(path):
                        yield path
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and root(node) in foreign:
            yield f"{root(node)} ... {node.attr}"


def overridden_names(tree: ast.AST, module: ModuleType) -> Iterator[str]:
    """Yield the private names in our classes that stand for others' in their bases."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and isclass(kind := vars(module).get(node.name)):
            foreign = [base for base in kind.__mro__[1:] if not is_ours(base.__module__)]
            for name in filter(is_private, bound(node)):
                yield from (f"{base}.{name}" for base in foreign if name in vars(base))


def bound(node: ast.ClassDef) -> Iterator[str]:
    """Yield the names that a class's body binds."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            yield item.name
        for part in ast.walk(item):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                yield part.id


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_no_private_name_of_another_library_is_used(file: Path) -> None:
    tree = ast.parse(file.read_text())

    assert list(private_names(tree)) == []


@pytest.mark.parametrize(
    "name",
    [
        ".".join(file.relative_to(PROJECT).with_suffix("").parts)
        for file in FILES
        if file.parts[-2] not in {"migrations", "versions"}
    ],
)
def test_no_private_name_of_another_library_is_overridden(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__

    tree = ast.parse(Path(module.__file__).read_text())

    assert list(overridden_names(tree, module)) == []


def test_private_names_are_found() -> None:
    found = private_names(
        ast.parse(
            "import logging, a._b, settings\n"
            "from fastapi._compat import ModelField\n"
            "from fastapi import _x as x\n"
            "from settings import _ours\n"
            "logging._srcfile\n"
            "logging.getLogger().x[0]._cache\n"
            "settings._ours, self._own, logging.__name__\n"
        )
    )

    assert list(found) == [
        *("a._b", "fastapi._compat.ModelField", "fastapi._x"),
        *("logging ... _srcfile", "logging ... _cache"),
    ]


def test_overridden_names_are_found() -> None:
    class_ = ast.parse("class Quiet:\n    _style = None\n    _own = 1\n    def _fmt(self): ...")
    module = ModuleType("module")
    base = type("Foreign", (), {"_style": 1, "_fmt": 2})
    base.__module__ = "foreign"
    vars(module)["Quiet"] = type("Quiet", (base,), {})

    assert [name.rpartition(".")[2] for name in overridden_names(class_, module)] == [
        *("_style", "_fmt"),
    ]
