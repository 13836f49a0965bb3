from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from flask import Blueprint, Flask, abort, request

from taskflow import InvalidJobId, JobHandle, named, run_sync

from .tasks import execute


class Query(NamedTuple):
    sql: str
    size: Literal["large", "small"] = "small"


QUERIES = {
    1: Query("SELECT name, cents FROM products ORDER BY name"),
    2: Query("SELECT sum(cents) FROM products"),
    3: Query("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n", "large"),
    4: Query("SELECT cents FROM orders"),
}

web = Blueprint("queries", __name__)


@web.get("/queries/<int:query_id>")
def show_query(query_id: int) -> dict[str, Any]:
    """Show the query with its run that waits or works, if there is one."""
    live = run_sync(execute.live(str(query_id)))
    return {"sql": QUERIES[query_id].sql, "run": live and live.id}


@web.post("/queries/<int:query_id>/runs")
def run_query(query_id: int) -> tuple[dict[str, str], int]:
    """Start a run, unless there is one. People who wait come before reports."""
    query = QUERIES[query_id]
    chosen = execute.options(queue=f"queries:{query.size}", priority=10 if "interactive" in request.form else 0)
    handle = chosen.delay_sync(query_id, query.sql)
    return {"id": handle.id}, 202 if handle.is_new else 200


@web.post("/queries/<int:query_id>/exports")
def export_query(query_id: int) -> tuple[dict[str, str], int]:
    export = named("queries.export").options(queue="queries:large")
    handle = export.delay_sync(query_id=query_id, sql=QUERIES[query_id].sql, file=Path(request.form["file"]))
    return {"id": handle.id}, 202


@web.get("/runs/<job_id>")
def show_run(job_id: str) -> dict[str, Any]:
    info = run_sync(_handle(job_id).info()) or abort(404)
    error = info.errors[-1].message if info.errors else None
    return {
        "query": (info.arguments or {}).get("query_id"),  # a job that has succeeded keeps no arguments
        "status": info.status.value,
        "started_at": info.started_at and info.started_at.isoformat(),
        "result": info.result,
        "error": error,
    }


@web.delete("/runs/<job_id>")
def cancel_run(job_id: str) -> tuple[str, int]:
    run_sync(_handle(job_id).cancel())
    return "", 204


def _handle(job_id: str) -> JobHandle[Any]:
    try:
        return JobHandle.of(job_id)
    except InvalidJobId:
        abort(404)


def create_app() -> Flask:
    app = Flask(__name__)
    app.register_blueprint(web)
    return app
