from __future__ import annotations

import sqlite3

from taskflow import JobContext, job


@job(name="queries.execute", key="{query_id}", key_scope="name", keep_result=3600, max_attempts=1)
def execute(ctx: JobContext, query_id: int, sql: str) -> list[tuple[int | str | None, ...]]:
    """Stop at the next 1,000 instructions of SQLite if the job is cancelled."""
    connection = sqlite3.connect("shop.db")
    try:
        connection.set_progress_handler(ctx.cancelled.is_set, 1_000)
        return connection.execute(sql).fetchall()
    finally:
        connection.close()
