"""Reads the SQL files, and fills in the schema, the columns, and the values of statuses, events, words and rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from taskflow.broker.literals import literals
from taskflow.broker.postgres import bounds
from taskflow.broker.postgres.columns import filled_in
from taskflow.model.rules import Rules

FOLDER: Final = Path(__file__).parent
_NAME: Final = re.compile(r"\b([SEWRP])\.([A-Za-z_]+)\b")


def filled(text: str, schema: str, rules: Rules) -> str:
    """Return the text of an SQL file with the schema, the columns and the values filled in."""
    values = _values(rules)
    return placed(_NAME.sub(lambda found: values[found[0]], filled_in(text)), schema)


def placed(text: str, schema: str) -> str:
    """Return SQL with the schema in place of "@."."""
    return text.replace("@.", f'"{schema}".')


def functions() -> list[str]:
    """Return the text of each SQL file that defines functions."""
    return [file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.sql"))]


def _values(rules: Rules) -> dict[str, str]:
    """Return the SQL literal for each name that an SQL file may contain."""
    values = literals(rules, text=_text, numbers=lambda numbers: f"'{{{','.join(map(str, numbers))}}}'")
    return values | bounds.literals()


def _text(text: str) -> str:
    """Return an SQL string literal. PostgreSQL's format() takes %s for numbers too, so this replaces %d."""
    return "'" + text.replace("'", "''").replace("%d", "%s") + "'"
