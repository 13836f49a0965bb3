"""Decodes the answer of upkeep(): see upkeep.sql."""

from __future__ import annotations

from taskflow.broker.postgres.rows import Row
from taskflow.broker.postgres.schedules import offers_of
from taskflow.broker.protocol import Upkept
from taskflow.model.clock import to_seconds


def upkept_of(row: Row) -> Upkept:
    return Upkept(
        readied=row["readied"],
        reaped=row["reaped"],
        released=row["released"],
        expired=row["expired"],
        dropped=row["dropped"],
        next_in=to_seconds(row["next_in"]),
        offers=offers_of(row),
        ended=tuple(row["ended"] or ()),
        ends_dropped=row["ends_dropped"] or 0,
    )
