"""Exports, which only a worker imports: what they need is not installed with the web application."""

from __future__ import annotations

from pathlib import Path

from taskflow import job

from .tasks import execute


@job(name="queries.export")
def export(query_id: int, sql: str, file: Path) -> int:
    rows = execute(query_id, sql)
    file.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return len(rows)
