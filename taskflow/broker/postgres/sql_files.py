"""Reads the SQL files, and fills in the schema, the columns, and the values of statuses, events, words, rules and limits."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

from taskflow.broker.engine.job import State, encode, text_bytes
from taskflow.broker.engine.records import BURIED, Flag
from taskflow.broker.literals import literals
from taskflow.broker.postgres import changes, queries
from taskflow.model import wording
from taskflow.model.ids import ID_BYTES
from taskflow.model.job_schema import MAX_PAYLOAD
from taskflow.model.record import CODES
from taskflow.model.stored_values import LATEST

FOLDER: Final = Path(__file__).parent
_TABLES: Final = "tables.sql"
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
    """Return the text of each SQL file that defines functions, and the functions that are derived from the declaration."""
    files = [file for file in sorted(FOLDER.glob("*.sql")) if file.name != _TABLES]
    return [*(file.read_text(encoding="utf-8") for file in files), *queries.functions()]


def tables() -> str:
    return (FOLDER / _TABLES).read_text(encoding="utf-8")


@cache
def _values() -> dict[str, str]:
    """Return the SQL literal for each name that an SQL file may contain."""
    statuses = {f"S.{status.name}": str(code) for status, code in CODES.items()}
    return statuses | {"S.BURIED": str(BURIED)} | literals(_text) | _limits()


def _text(text: str) -> str:
    """Return an SQL string literal. PostgreSQL's format() takes %s for numbers too, so this replaces %d."""
    return "'" + text.replace("'", "''").replace("%d", "%s") + "'"


# --- limits: P.LATEST and so on ---------------------------------------------------------------------------------------

MAX_BYTES: Final = 1 << 20
"""The maximum size of a small stored value in bytes. A longer value is not fetched."""

MAX_PAYLOAD_BYTES: Final = 1 << 26
"""The maximum size of a payload or a result in bytes. A longer value is not fetched."""

MIN_KEPT: Final = 60_000_000
"""The minimum time in microseconds for which a flow's job is kept after it was settled in a caller's transaction, so that upkeep can pass
its result on."""

NOTE_TTL: Final = 90_000_000
"""Microseconds for which a listener's note is valid. The listener renews it every minute."""

MAX_NOTIFIED_BYTES: Final = 5_300
"""The maximum size, in bytes, of a record that is sent with the notification that its job
has ended. A notification holds at most 8,000 bytes, and the record is sent as base64."""


def _limits() -> dict[str, str]:
    """Return the SQL literal of each limit. Some are used in constraints."""
    return {
        "P.LATEST": str(LATEST),
        "P.MAX_BYTES": str(MAX_BYTES),
        "P.MAX_PAYLOAD_BYTES": str(MAX_PAYLOAD_BYTES),
        "P.MAX_PAYLOAD": str(MAX_PAYLOAD),
        "P.MAX_REQUEST": str(2 * MAX_PAYLOAD + 16 * MAX_BYTES),  # bytes are sent in hexadecimal
        "P.NOTE_TTL": str(NOTE_TTL),
        "P.MAX_NOTIFIED_BYTES": str(MAX_NOTIFIED_BYTES),
        "P.MIN_KEPT": str(MIN_KEPT),
        "P.CONSEQUENTIAL": str(Flag.LIMITED | Flag.KEYED | Flag.AWAITED | Flag.STATED | Flag.NOTED),
        "P.STATE_ARRIVING": _state(State(waiting=_ARRIVES)),
        "P.STATE_REPLACING": _state(State(waiting=_ARRIVES, replaces=True)),
        "P.STATE_REPLACED": _state(State(waiting=_ARRIVES, replaced=bytes(ID_BYTES)), cut=ID_BYTES),
    }


_ARRIVES: Final = text_bytes(wording.ARRIVES)


def _state(state: State, *, cut: int = 0) -> str:
    """Return the packed state of a job that a caller's transaction added, without the last `cut` bytes."""
    packed = encode(state)
    return f"decode('{packed[: len(packed) - cut].hex()}', 'hex')"
