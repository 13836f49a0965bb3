"""What users read, as sentences: pages, help, messages and the docstrings of public names."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import taskflow
from taskflow.cli.parser import a_parser

ROOT: Final = Path(__file__).parents[2]

_WORD: Final = re.compile(r"\w[\w'./:=@-]*")
_END: Final = re.compile(r"(?<=[.!?])[)\"”*_]*\s+(?=[A-Z`\"“(*\[0-9]|taskflow\b)|\n\s*\n")
_ABBREVIATION: Final = re.compile(r"\b(e\.g|i\.e|etc|vs)\.", re.IGNORECASE)
_GENERATED: Final = re.compile(r"<!-- (\w+) writes this -->.*?<!-- end of \1 -->", re.DOTALL)
_FENCE: Final = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_ITEM: Final = re.compile(r"^ *(?:[-*]|\d+\.) +", re.MULTILINE)
_SPEAKERS: Final = {
    *("debug", "info", "warning", "error", "critical", "exception"),
    *(name for name in taskflow.__all__ if isinstance(value := getattr(taskflow, name), type) and issubclass(value, BaseException)),
}
"""Calls whose first arguments are messages. Some functions make an error for their caller to raise."""


def words(sentence: str) -> int:
    return len(_WORD.findall(sentence))


def sentences(prose: str) -> list[str]:
    """Split running text. A colon and a semicolon end no sentence; an empty line does."""
    text = _ABBREVIATION.sub(r"\1", prose)
    return [" ".join(part.split()) for part in _END.split(text) if words(part) > 1]


def of_page(page: Path) -> list[str]:
    """Return the sentences of a page: no code, no headings, no links' targets. A table's cell and a list's item stand for themselves."""
    text = _GENERATED.sub("", page.read_text())
    text = _FENCE.sub("", text)
    text = re.sub(r"^ {4,}\S.*$|^#.*$|^[|] ?:?-.*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"`[^`]+`", "CODE", text)
    return [sentence for block in _blocks(text) for sentence in sentences(block)]


def _blocks(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.lstrip().startswith("|"):
            yield from (cell for line in paragraph.splitlines() for cell in line.strip("| ").split(" | "))
        else:
            yield from _ITEM.split(paragraph)


def of_readme() -> list[str]:
    return of_page(ROOT / "README.md")


def of_docs() -> list[str]:
    return [sentence for page in sorted(ROOT.glob("docs/**/*.md")) for sentence in of_page(page)]


def of_help() -> list[str]:
    """Return the sentences of `taskflow --help`, and of the help of each command."""
    parser = a_parser()
    texts: list[str] = []
    for each in (parser, *parser.commands.values()):
        texts += [each.description or "", *(action.help or "" for action in each._actions if action.help != argparse.SUPPRESS)]
    return [sentence for text in texts for sentence in sentences(text)]


def of_messages() -> list[str]:
    """Return the sentences of raised errors and of the log. A value that a message names counts as one word."""
    found: list[str] = []
    for file in sorted((ROOT / "taskflow").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                found += _texts(node.exc)
            elif isinstance(node, ast.Call) and _name(node.func) in _SPEAKERS:
                found += _texts(node)
    return [sentence for text in dict.fromkeys(found) for sentence in sentences(text) if words(sentence) > 2]


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def _texts(call: ast.Call) -> Iterator[str]:
    for argument in call.args[:2]:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            yield argument.value
        elif isinstance(argument, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "VALUE" for part in argument.values)  # type: ignore[misc]


def of_public_docstrings() -> list[str]:
    """Return the sentences of each public name, and of the public methods of classes. An aligned list counts line by line."""
    found: list[str] = []
    for name in taskflow.__all__:
        value: Any = getattr(taskflow, name)
        members = [member for key, member in vars(value).items() if not key.startswith("_")] if inspect.isclass(value) else []
        for each in (value, *members):
            if (text := getattr(each, "__doc__", None)) and (inspect.isroutine(each) or isinstance(each, type | property)):
                found += [sentence for part in _parts(text) for sentence in sentences(part)]
    return found


def of_all_docstrings() -> list[str]:
    """Return the sentences of every docstring of the package, which contributors read. Rows of tables are none."""
    found: list[str] = []
    for file in sorted((ROOT / "taskflow").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
                prose = re.sub(r"^ *(?:\||={4}|.*={6}).*$", "\n", text, flags=re.MULTILINE)
                found += [sentence for part in _parts(prose) for sentence in sentences(part)]
    return found


def _parts(docstring: str) -> list[str]:
    first, _, rest = docstring.partition("\n")
    return re.split(r"\n(?=`\w)", f"{first.strip()}\n{textwrap.dedent(rest)}")


SOURCES: Final = {
    "README": of_readme,
    "docs": of_docs,
    "help": of_help,
    "messages": of_messages,
    "public docstrings": of_public_docstrings,
    "all docstrings": of_all_docstrings,
}
