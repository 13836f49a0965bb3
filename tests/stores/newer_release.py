"""A release after this one, which has one more kind of records and two more indexes. Run as a program with the URL of a store, it migrates
the store if it can, adds a job, and prints the number of jobs. Words before the URL: "index", or it has only the kind; "rebuild", to
compute the indexes first; "sql", to only print its migration."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from taskflow.broker.engine import records
from taskflow.broker.engine.records import Field, Index, Kind, Type

NEW_KIND = max(records.HEADERS) + 1
TABLE = "extras"
OF_JOBS = Index("by_due", Kind.JOB, "status < 7", ("due_at", "seq"))


def become(*, with_index: bool) -> None:
    """Change the declaration, before the stores are imported."""
    changed: Any = records
    changed.HEADERS = {**records.HEADERS, NEW_KIND: (Field("at", Type.NUMBER, 0),)}
    changed.TABLES[NEW_KIND] = TABLE
    changed.INDEXES = (*records.INDEXES, Index("extras_at", NEW_KIND, "", ("at", "id")), *([OF_JOBS] if with_index else []))
    from taskflow.broker.postgres import schema
    from taskflow.broker.redis import layout

    schema.VERSION = 2  # type: ignore[misc]
    layout.PREFIXES = (*layout.PREFIXES, "z:")  # type: ignore[misc, assignment]


async def _main(url: str, words: list[str]) -> None:
    from taskflow.broker.url import connect
    from tests.stores.jobs import an_envelope

    broker: Any = connect(url)
    try:
        if "sql" in words:
            print(await broker.sql())
            return
        if "rebuild" in words:
            await broker.admin.rebuild()
        await broker.enqueue([an_envelope()])
        [queue] = await broker.admin.queues()
        print(sum(queue.counts.values()))
    finally:
        await broker.close()


if __name__ == "__main__":
    *words, place = sys.argv[1:]
    become(with_index="index" in words)
    asyncio.run(_main(place, words))
