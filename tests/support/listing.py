"""Lists the jobs of a store."""

from __future__ import annotations

from taskflow.broker.admin import Admin, View
from taskflow.broker.paging import pages
from taskflow.model.record import Record


async def listed(admin: Admin, view: View | None = None) -> list[Record]:
    """Return the records of all jobs of a view, newest first."""
    found = [record async for records in pages(admin, view or View()) for record in records]
    return sorted(found, key=lambda record: record.id, reverse=True)
