"""Packs definitions and firings of schedules into arguments for the functions in schedules.sql, and decodes their answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

from taskflow.broker.postgres.enqueue import envelope_columns
from taskflow.broker.postgres.rows import Row
from taskflow.model.schedule import Definition, Firing, Offer, ScheduleRecord
from taskflow.model.stored_values import maybe_instant

_SEPARATOR: Final = "\x1f"
"""Separates the names of sessions in the column `declarers`."""

_INSTANTS: Final = ("next_at", "last_at", "fired_at", "asleep_since")


def definition_columns(definitions: Sequence[Definition]) -> list[list[Any]]:
    """Return the arguments of define() for the definitions: names, digests and bodies."""
    return [[getattr(definition, field) for definition in definitions] for field in Definition._fields]


def firing_columns(firings: Sequence[Firing]) -> list[list[Any]]:
    """Return the arguments of fire() (see schedules.sql): the fields of the firings, and the columns of their envelopes."""
    envelopes = [firing.envelope for firing in firings if firing.envelope is not None]
    counts = accumulate(firing.envelope is not None for firing in firings)
    return [
        *([getattr(firing, field) for firing in firings] for field in ("name", "digest", "expected", "next_at", "look_at", "missed")),
        [None if firing.envelope is None else count for firing, count in zip(firings, counts, strict=True)],
        *envelope_columns(envelopes),
    ]


def offers_of(row: Row) -> tuple[Offer, ...]:
    """Decode the offers in the answer from upkeep()."""
    columns = (row[column] or () for column in ("names", "digests", "bodies", "nexts", "sinces"))
    return tuple(
        Offer(name=name, digest=digest, body=body, next_at=next_at, since=since, now=row["now_at"])
        for name, digest, body, next_at, since in zip(*columns, strict=True)
    )


def record_of(row: Row) -> ScheduleRecord:
    fields = {field: row[field] for field in ScheduleRecord.__struct_fields__}
    fields |= {column: maybe_instant(row[column]) for column in _INSTANTS}
    fields["declarers"] = () if row["declarers"] is None else tuple(row["declarers"].split(_SEPARATOR))
    return ScheduleRecord(**fields)
