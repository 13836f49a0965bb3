"""What users and contributors read, as sentences: pages, help, messages, docstrings and comments."""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import taskflow
from taskflow.cli.parser import a_parser

ROOT: Final = Path(__file__).parents[2]

_WORD: Final = re.compile(r"\w[\w'./:=@-]*")
_END: Final = re.compile(r"(?<=[.!?])[)\"”*_]*\s+(?=[A-Z`\"“(*\[0-9]|taskflow\b)|\n\s*\n")
_ABBREVIATION: Final = re.compile(r"\b(e\.g|i\.e|etc|vs)\.", re.IGNORECASE)
_GENERATED: Final = re.compile(r"<!-- ([\w-]+) writes this -->.*?<!-- end of \1 -->", re.DOTALL)
_FENCE: Final = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_ITEM: Final = re.compile(r"^ *(?:[-*]|\d+\.) +", re.MULTILINE)
_SQL: Final = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER TABLE|DROP|PRAGMA|SET LOCAL|BEGIN|COMMENT ON|RETURNING|EXISTS)\b")
_TABLE: Final = re.compile(r"^ *(?:\||={4}|.*={6}).*$", re.MULTILINE)
_FOR_TOOLS: Final = re.compile(r"^(?:noqa|type:|pyright:|pragma:|fmt:)[^#]*#? *|^-{3}.*$|^===.*$|^name: \w+$")
_ROW: Final = re.compile(r"^(?:\S.*\S {2,}\S| {4}).*$", re.MULTILINE)


def words(sentence: str) -> int:
    return len(_WORD.findall(sentence))


def sentences(prose: str) -> list[str]:
    """Split running text. A colon and a semicolon end no sentence; an empty line does."""
    text = _ABBREVIATION.sub(r"\1", prose)
    return [" ".join(part.split()) for part in _END.split(text) if words(part) > 1]


def of_page(page: Path) -> list[str]:
    """Return the sentences of a page: no code, no headings, no links' targets. A table's cell and a list's item stand for themselves."""
    return [sentence for paragraph in paragraphs_of(page) for sentence in paragraph]


def paragraphs_of(page: Path) -> list[list[str]]:
    """Return the sentences of each paragraph, list's item and table's cell of a page."""
    text = _GENERATED.sub("", page.read_text())
    text = _FENCE.sub("", text)
    text = re.sub(r"^ {4,}\S.*$|^#.*$|^[|] ?:?-.*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"`[^`]+`", "CODE", text)
    return [sentences(block) for block in _blocks(text)]


def _blocks(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.lstrip().startswith("|"):
            yield from (cell for line in paragraph.splitlines() for cell in line.strip("| ").split(" | "))
        else:
            yield from _ITEM.split(paragraph)


PAGES: Final = [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted(ROOT.glob("docs/**/*.md"))]


def of_readme() -> list[str]:
    return of_page(PAGES[0])


def of_docs() -> list[str]:
    return [sentence for page in PAGES[1:] for sentence in of_page(page)]


def of_help() -> list[str]:
    """Return the sentences of `taskflow --help`, and of the help of each command and its actions."""
    texts: list[str] = []
    parsers = [a_parser()]
    for each in parsers:
        parsers += each.commands.values()
        texts += [each.description or "", *(action.help or "" for action in each._actions if action.help != argparse.SUPPRESS)]
    return [sentence for text in texts for sentence in sentences(text)]


def of_messages() -> list[str]:
    """Return the sentences of errors, logs and output: all texts in the code, but SQL. A value that a message names counts as one word."""
    found = [text for file in _modules() for text in _literals(ast.parse(file.read_text())) if not _SQL.search(text)]
    return [sentence for text in dict.fromkeys(found) for sentence in sentences(text) if words(sentence) > 3]


def _modules() -> list[Path]:
    return sorted((ROOT / "taskflow").rglob("*.py"))


def _literals(tree: ast.Module) -> Iterator[str]:
    skipped: set[ast.AST] = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped.update(node.values)
            yield "".join(part.value if isinstance(part, ast.Constant) else "VALUE" for part in node.values)  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield node.value


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
    for file in _modules():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                prose = _TABLE.sub("\n", inspect.cleandoc(node.value.value))
                found += [sentence for part in _parts(prose) for item in _ITEM.split(part) for sentence in sentences(item)]
    return found


def of_comments() -> list[str]:
    """Return the sentences of the comments in Python."""
    found: list[str] = []
    for file in _modules():
        tokens = tokenize.generate_tokens(io.StringIO(file.read_text()).readline)
        found += [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    return [sentence for text in found for sentence in sentences(_FOR_TOOLS.sub("", text)) if words(sentence) > 1]


def of_scripts() -> list[str]:
    """Return the sentences of the comments in Lua and SQL. Rows of tables are none."""
    found: list[str] = []
    for file in sorted(path for path in (ROOT / "taskflow").rglob("*") if path.suffix in (".lua", ".sql")):
        block: list[str] = []
        for line in [*file.read_text().splitlines(), ""]:
            code, mark, comment = line.partition("-- ")
            if mark and not code.strip():
                block.append(_FOR_TOOLS.sub("\n", comment))
                continue
            found += ["\n".join(block), comment]
            block = []
    return [sentence for text in found for sentence in sentences(_ROW.sub("\n", text))]


def _parts(docstring: str) -> list[str]:
    first, _, rest = docstring.partition("\n")
    return re.split(r"\n(?=`\w|\S+(?:, \S+)* {2,}\S)", f"{first.strip()}\n{textwrap.dedent(rest)}")


SOURCES: Final = {
    "README": of_readme,
    "docs": of_docs,
    "help": of_help,
    "messages": of_messages,
    "public docstrings": of_public_docstrings,
    "all docstrings": of_all_docstrings,
    "comments": of_comments,
    "Lua and SQL": of_scripts,
}
