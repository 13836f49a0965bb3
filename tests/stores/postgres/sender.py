"""A job sent by a statement of the user's own."""

from __future__ import annotations

import json
from typing import Any, Final

import asyncpg

from taskflow import JobHandle

NOTE: Final = "tests.stores.note"
"""The scene's job."""


async def send(sql: asyncpg.Connection, options: str = "", **arguments: Any) -> JobHandle[Any]:
    """The scene's job, `options` as they stand in SQL."""
    job_id = await sql.fetchval(
        f"SELECT taskflow.enqueue('{NOTE}', $1::jsonb{options and ', ' + options})", json.dumps({"number": 1, **arguments})
    )
    return JobHandle.of(str(job_id))
