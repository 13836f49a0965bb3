"""What imports what, read from the source: module names, and the ones that each imports when it is loaded or later."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "taskflow"


class Imported(NamedTuple):
    """`is_for_types` when it stands under ``if TYPE_CHECKING``: it is never run."""

    module: str
    is_for_types: bool


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    return {_dotted(file): file for file in sorted(PACKAGE.rglob("*.py"))}


@cache
def nodes_of(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text())))


@cache
def imports_of(file: Path, known: frozenset[str]) -> set[Imported]:
    """The modules of the package that a file imports, wherever in it."""
    nodes = nodes_of(file)
    typed = {id(inner) for node in nodes if _is_type_checking(node) for inner in ast.walk(node)}
    found = set[Imported]()
    for node in nodes:
        found |= {Imported(module, id(node) in typed) for module in _targets(node, known)}
    return found


def _targets(node: ast.AST, known: frozenset[str]) -> set[str]:
    """``from package import module`` imports the module; of the package it runs only what any import of the module would."""
    named = (name if name in known else name.rpartition(".")[0] for name in _named(node))
    return {module for module in named if module in known}


def all_imported_names(file: Path) -> set[str]:
    """The first part of every name that a file imports: "asyncio", "msgpack", "taskflow"."""
    names = {name for node in nodes_of(file) for name in _named(node)}
    return {name.partition(".")[0] for name in names}


def _named(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _dotted(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
