"""The SQL of this folder, by name, for one namespace. This is the one place where text is put into SQL."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parent
_NAME_LINE: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COMMENT: Final = re.compile(r"^\s*--.*$|\s+-- .*$", re.MULTILINE)
_INCLUDED: Final = re.compile(r"@(\w+)")
_REPEATED: Final = re.compile(r"(\((?:\?, )*\?\)) \.\.\.")


class Statements:
    """Every statement of the folder by its name; "~x" in it has become the namespace's table x."""

    def __init__(self, namespace: str) -> None:
        prefix = table_prefix(namespace)
        self._texts = {name: text.replace('"~', f'"{prefix}') for name, text in _texts().items()}
        self._of_rows: dict[tuple[str, int], str] = {}

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def of_rows(self, name: str, number: int) -> str:
        """A statement that ends a list with "(?, ?) ...", for so many of them."""
        known = self._of_rows.get((name, number))
        if known is None:
            known = _REPEATED.sub(lambda row: ", ".join([row[1]] * number), self._texts[name])
            self._of_rows[name, number] = known
        return known


def table_prefix(namespace: str) -> str:
    """What the names of a namespace's tables begin with.

    SQLite takes "A" and "a" for the same name, and keeps those that begin with "sqlite" to itself: a "^" tells them apart.
    """
    marked = re.sub("[A-Z]", lambda upper: "^" + upper[0].lower(), namespace)
    return ("^^" if marked.startswith("sqlite") else "") + marked + "_"


def pragma(name: str, value: int) -> str:
    """A PRAGMA takes no parameters."""
    return f"PRAGMA {name}={value:d}"


@cache
def _texts() -> dict[str, str]:
    found: dict[str, str] = {}
    for file in sorted(_FOLDER.glob("*.sql")):
        _, *parts = _NAME_LINE.split(file.read_text())
        found |= {name: _COMMENT.sub("", text).strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}
    return {name: _INCLUDED.sub(lambda part: found[part[1]], text) for name, text in found.items()}
