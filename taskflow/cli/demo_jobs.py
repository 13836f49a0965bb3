"""The jobs of `taskflow demo`."""

from __future__ import annotations

import ast
import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

from taskflow import Backoff, JobContext, job


@dataclass(frozen=True)
class SourceFile:
    """The facts about one file: its SHA-256, how many lines and definitions it has, and which modules it imports.

    `definitions` is None if the file cannot be parsed. Some test suites contain such files on purpose.
    """

    path: str
    sha256: str
    lines: int
    definitions: int | None
    imports: list[str]


@job(name="taskflow.demo.index", queue="demo", retry=Backoff(base=0.5), keep_result=3600)
def index(ctx: JobContext, path: str, *, fails_once: bool = False) -> SourceFile:
    if fails_once and ctx.attempt == 1:
        raise OSError(f"{path}: this attempt fails on purpose, to show a retry")
    content = Path(path).read_bytes()
    definitions, imports = _parsed(content)
    return SourceFile(path, hashlib.sha256(content).hexdigest(), content.count(b"\n"), definitions, imports)


def _parsed(content: bytes) -> tuple[int | None, list[str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError, RecursionError):
        return None, []
    definitions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in nodes)
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return definitions, sorted({name.partition(".")[0] for name in imported})
