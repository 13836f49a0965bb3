"""Reads the SQL files, and fills in the schema, the columns, and the values of statuses, events, words and rules."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

from taskflow.broker.engine.records import BURIED
from taskflow.broker.literals import literals
from taskflow.broker.postgres import bounds, changes, queries
from taskflow.model.record import CODES

FOLDER: Final = Path(__file__).parent
_FRAGMENT: Final = re.compile(r"@[A-Z_]+\b")
_NAME: Final = re.compile(r"\b([SEWRP])\.([A-Za-z_]+)\b")


def filled(text: str, schema: str) -> str:
    """Return the text of an SQL file with the schema, the columns and the values filled in."""
    fragments, values = _fragments(), _values()
    derived = _FRAGMENT.sub(lambda found: fragments[found[0]], text)
    return placed(_NAME.sub(lambda found: values[found[0]], derived), schema)


@cache
def _fragments() -> dict[str, str]:
    return changes.fragments()


def placed(text: str, schema: str) -> str:
    """Return SQL with the schema in place of "@."."""
    return text.replace("@.", f'"{schema}".')


def functions() -> list[str]:
    """Return the text of each SQL file that defines functions, and those that are derived from the declaration."""
    return [*(file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.sql"))), *queries.functions()]


@cache
def _values() -> dict[str, str]:
    """Return the SQL literal for each name that an SQL file may contain."""
    statuses = {f"S.{status.name}": str(code) for status, code in CODES.items()}
    return statuses | {"S.BURIED": str(BURIED)} | literals(_text) | bounds.literals()


def _text(text: str) -> str:
    """Return an SQL string literal. PostgreSQL's format() takes %s for numbers too, so this replaces %d."""
    return "'" + text.replace("'", "''").replace("%d", "%s") + "'"
