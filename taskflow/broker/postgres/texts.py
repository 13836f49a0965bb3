"""The SQL: read from its files, with the schema and the names of statuses, events, words and rules written into it as values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Final

from taskflow.broker import words
from taskflow.model.clock import to_microseconds
from taskflow.model.record import CODES, POISON, Event
from taskflow.model.rules import Rules
from taskflow.model.verdict import MAX_ERRORS_BYTES

GONE: Final = 7
"""The code of a job of which only the id and the fence are known any more."""

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


def _values(rules: Rules) -> Mapping[str, str]:
    """Name to SQL literal."""
    values = {f"S.{status.name}": str(code) for status, code in CODES.items()} | {"S.GONE": str(GONE)}
    values |= {f"E.{event.name}": _text(event.value) for event in Event}
    values |= {f"W.{name}": _text(text) for name, text in vars(words).items() if name.isupper() and isinstance(text, str)}
    values["W.POISON"] = _text(POISON)
    backoff = ",".join(str(to_microseconds(seconds)) for seconds in rules.crash_backoff)
    return values | {
        "R.ghost_after": str(to_microseconds(rules.ghost_after)),
        "R.max_crashes": str(rules.max_crashes),
        "R.crash_backoff": f"'{{{backoff}}}'",
        "R.max_hand_backs": str(rules.max_hand_backs),
        "R.repeat_for": str(to_microseconds(rules.repeat_for)),
        "R.keep_failed": str(to_microseconds(rules.keep_failed)),
        "R.keep_cancelled": str(to_microseconds(rules.keep_cancelled)),
        "R.kept_per_queue": str(rules.kept_per_queue),
        "R.upkeep_every": str(to_microseconds(rules.upkeep_every)),
        "R.max_errors_bytes": str(MAX_ERRORS_BYTES),
    }


def _text(text: str) -> str:
    """A literal. PostgreSQL's format() knows %s for numbers too."""
    return "'" + text.replace("'", "''").replace("%d", "%s") + "'"
