"""Reads the SQL files, and fills in the schema and the values of statuses, events, words and rules."""

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
    """Return the statements of a file for a schema and the rules of a store."""
    values = _values(rules)
    return placed(_NAME.sub(lambda found: values[found[0]], filled_in(text)), schema)


def placed(text: str, schema: str) -> str:
    """Return SQL with the schema in place of "@."."""
    return text.replace("@.", f'"{schema}".')


def functions() -> list[str]:
    """Return the text of each file of functions."""
    return [file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.sql"))]


def _values(rules: Rules) -> dict[str, str]:
    """Return the SQL literal of each name."""
    values = literals(rules, text=_text, numbers=lambda numbers: f"'{{{','.join(map(str, numbers))}}}'")
    return values | bounds.literals()


def _text(text: str) -> str:
    """Return a string literal. PostgreSQL's format() uses %s for numbers too."""
    return "'" + text.replace("'", "''").replace("%d", "%s") + "'"
