"""The SQL: read from its files, with the schema and the names of statuses, events, words and rules written into it as values."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Final

from taskflow.broker.literals import literals
from taskflow.model.rules import Rules

TABLES: Final = "tables"
FUNCTIONS: Final = ("shelf", "enqueue", "sessions", "settling", "upkeep", "console")

_NAME: Final = re.compile(r"\b([SEWR])\.([A-Za-z_]+)\b")


def script(name: str, schema: str, rules: Rules) -> str:
    """The statements of a file, for a schema and a store that goes by these rules."""
    values = _values(rules)
    text = _NAME.sub(lambda found: values[found[0]], _source(name))
    return text.replace("@.", f'"{schema}".')


@cache
def _source(name: str) -> str:
    return (resources.files("taskflow.broker.postgres") / "sql" / f"{name}.sql").read_text(encoding="utf-8")


def _values(rules: Rules) -> dict[str, str]:
    """Name to SQL literal."""
    return literals(rules, text=_text, numbers=lambda numbers: f"'{{{','.join(map(str, numbers))}}}'")


def _text(text: str) -> str:
    """A literal. PostgreSQL's format() knows %s for numbers too."""
    return "'" + text.replace("'", "''").replace("%d", "%s") + "'"
