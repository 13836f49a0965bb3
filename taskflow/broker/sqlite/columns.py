"""Generates SQL lists of job columns, and conditions on them, from the job
schema. The statements in this folder include them as @sent, @sound and so on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from taskflow.broker.sqlite.row import CHANGING, COLUMNS, OF_RUN, REPAIRED, SENT
from taskflow.model.job_schema import BY_NAME, CLAIMED, DROP, FIELDS, NAME, OUTCOME, TAGGED, Field, cleared_by

_UNBOUNDED: Final = (1 << 63) - 1


def lists() -> dict[str, str]:
    """Map the name of each list to its SQL text."""
    lists = {"job": ", ".join(map(_fetched, COLUMNS))}
    for name, columns in {"sent": SENT, "all": COLUMNS[1:], "of_run": OF_RUN}.items():
        lists |= {name: ", ".join(map(name_of, columns)), f"{name}_places": ", ".join("?" * len(columns))}
    lists |= {
        name: ", ".join(f"{name_of(each)} = ?" for each in columns) for name, columns in (("changing", CHANGING), ("repaired", REPAIRED))
    }
    lists["from_run"] = ", ".join(f"{name_of(column)} = run.{name_of(column)}" for column in OF_RUN)
    for name, move in {"claimed": CLAIMED, "outcome": OUTCOME, "dropped": DROP}.items():
        lists[name] = ", ".join(f"{column} = {'NULL' if default is None else default}" for column, default in cleared_by(move).items())
    lists["sized"] = " ".join(f"WHEN '{field.name}' THEN {field.name}" for field in FIELDS if _is_sized(field))
    lists["tagged"] = f"substr(extras, 2, 2) = X'{TAGGED.hex()}'"
    lists["plain"] = " AND ".join(_plain())
    lists["sound"] = " AND ".join(_sound())
    return lists


def name_of(column: str) -> str:
    """Return the name of a column in the file."""
    return "status" if column == "code" else column


def _is_sized(field: Field) -> bool:
    return field.kind.type is not int and field.kind.least != field.kind.most


def _fetched(column: str) -> str:
    """Return SQL that fetches a column, or its negated length if the value
    is oversized. (SQLite knows the length of a blob without reading it.)"""
    name = name_of(column)
    field = BY_NAME[name]
    return f"iif(length({name}) > {field.kind.most}, -length({name}), {name})" if _is_sized(field) else name


def _plain() -> Iterator[str]:
    """Yield the conditions of `envelope.is_plain`."""
    for field in FIELDS:
        if field.sent and not field.is_plain:
            unset = "IS NULL" if field.default is None else f"= {field.default}"
            yield "due_at = created_at" if field.name == "due_at" else f"{field.name} {unset}"


def _sound() -> Iterator[str]:
    """Yield the conditions of `soundness.is_sound`, for the columns on which statements base decisions."""
    for name, kind, default, *_ in (field for field in FIELDS if field.is_decided and field.kind is not NAME and field.name != "seq"):
        held = {int: "integer", bytes: "blob", str: "text"}[kind.type]
        value = name if kind.type is int else f"length({name})"
        bound = f"{value} >= {kind.least}" if kind.most == _UNBOUNDED else f"{value} BETWEEN {kind.least} AND {kind.most}"
        sound = f"typeof({name}) = '{held}' AND {bound}"
        yield f"({name} IS NULL OR {sound})" if default is None else sound
