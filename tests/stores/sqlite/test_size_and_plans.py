"""What a job takes of the disk, and that statements go by their indexes however much there is."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.sqlite.columns import lists
from taskflow.broker.sqlite.connect import connect_for_writing
from taskflow.broker.sqlite.statements import Statements
from taskflow.broker.sqlite.store_file import SpaceLimits, StoreFile
from tests.stores.sqlite.support import a_session, connected, envelopes

SQL = Statements("taskflow")


async def test_bytes_a_job(broker: SqliteBroker, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a payload of 200 bytes, indexes counted in."""
    for _ in range(100):
        await broker.enqueue(envelopes(1_000, payload=bytes(200)))
    await broker.close()
    size = path.stat().st_size / 100_000
    with capsys.disabled():
        print(f"\nsqlite: {size:.0f} bytes a queued job with a payload of 200")
    assert size <= 400


# --- plans ------------------------------------------------------------------------------------------------------------

# What each statement may read: indexes, and lists of its own. Statements of queues, names, totals and sessions read small tables.
INDEXES = {
    "job_by_id": {"sqlite_autoindex_taskflow_jobs_1"},
    "job_by_seq": {"INTEGER PRIMARY KEY"},
    "repair_job": {"INTEGER PRIMARY KEY"},
    "jobs_by_claim": {"taskflow_jobs_leased"},
    "waiting_holder": {"taskflow_jobs_key"},
    "running_holder": {"taskflow_jobs_key"},
    "waiting_behind": {"taskflow_jobs_key"},
    "lease_count": {"taskflow_jobs_leased"},
    "ready_jobs": {"taskflow_jobs_ready", "INTEGER PRIMARY KEY"},  # of the queue, which may be paused
    "lease_jobs": {"INTEGER PRIMARY KEY"},
    "held_claims": {"taskflow_jobs_leased"},
    "save_reports": {"taskflow_jobs_leased"},
    "settle_cached": {"INTEGER PRIMARY KEY"},
    "settle_lone_successes": {"taskflow_jobs_leased"},
    "states_of_lone_runs": {"taskflow_jobs_leased"},
    "save_runs": {"INTEGER PRIMARY KEY"},
    "next_due": {"taskflow_jobs_due", "taskflow_schedules_look"},
    "due_jobs": {"taskflow_jobs_due"},
    "ready_due_jobs": {"taskflow_jobs_due", "INTEGER PRIMARY KEY"},
    "some_leases": {"taskflow_jobs_leased"},
    "expired_jobs": {"taskflow_jobs_expiring"},
    "oldest_failed": {"taskflow_jobs_failed"},
    "oldest_done": {"taskflow_jobs_done"},
    "bury_oldest_failed": {"taskflow_jobs_failed", "INTEGER PRIMARY KEY"},
    "bury_oldest_done": {"taskflow_jobs_done", "INTEGER PRIMARY KEY"},
    "faded_jobs": {"taskflow_jobs_fading"},
    "last_faded_job": {"taskflow_jobs_fading"},
    "bury_faded_jobs": {"taskflow_jobs_fading", "INTEGER PRIMARY KEY"},
    "drop_faded_jobs": {"taskflow_jobs_fading"},
    "forget_jobs": {"taskflow_jobs_dropped", "INTEGER PRIMARY KEY"},
    "forget_jobs_before": {"taskflow_jobs_dropped", "INTEGER PRIMARY KEY"},
    "next_due_of_queue": {"taskflow_jobs_due"},
    "oldest_ready": {"taskflow_jobs_ready"},
    "page_held": {"taskflow_jobs_held"},
    "page_scheduled": {"taskflow_jobs_due"},
    "page_ready": {"taskflow_jobs_ready"},
    "next_priority": {"taskflow_jobs_ready"},
    "page_running": {"taskflow_jobs_leased"},
    "page_failed": {"taskflow_jobs_failed"},
    "page_done": {"taskflow_jobs_done"},
    "page_tag": {"PRIMARY KEY", "INTEGER PRIMARY KEY"},
    "to_purge_with_tag": {"PRIMARY KEY", "INTEGER PRIMARY KEY"},
    "add_tags": {"sqlite_autoindex_taskflow_jobs_1"},
    "drop_tags": {"taskflow_tags_seq"},
    "drop_tags_of_oldest_failed": {"taskflow_tags_seq", "taskflow_jobs_failed"},
    "drop_tags_of_oldest_done": {"taskflow_tags_seq", "taskflow_jobs_done"},
    "drop_tags_of_faded_jobs": {"taskflow_tags_seq", "taskflow_jobs_fading"},
    "failure_parts": {"taskflow_jobs_causes", "INTEGER PRIMARY KEY"},
    "failures_of": {"taskflow_jobs_causes"},
    "unknown_failures": {"taskflow_jobs_causes"},
    "ids_of_failed": {"INTEGER PRIMARY KEY"},
    "ready_queues": {"taskflow_queues_ready"},
    "first_ready_queues": {"taskflow_queues_ready"},
    "ended_among": {"sqlite_autoindex_taskflow_jobs_1"},
    "has_runs_to_stop": {"taskflow_jobs_leased"},
    "schedule_by_name": {"sqlite_autoindex_taskflow_schedules_1"},
    "due_schedules": {"taskflow_schedules_look", "INTEGER PRIMARY KEY"},
    "save_schedule": set(),
    "drop_declarations": {"taskflow_declarations_session"},
    "youngest_declaration": {"sqlite_autoindex_taskflow_sessions_1"},
    "declarers": {"sqlite_autoindex_taskflow_sessions_1"},
    "all_ready_jobs": {"taskflow_jobs_ready", "INTEGER PRIMARY KEY"},
}


@pytest.fixture(scope="module", params=[0, 1_000, 100_000])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A file with so many jobs of each kind, and SQLite knows how many."""
    path = str(tmp_path_factory.mktemp("plans") / "queue.db")
    connection, _ = connect_for_writing(StoreFile(path, "taskflow", False, 5.0, SpaceLimits()), SQL)
    number: int = request.param
    connection.execute("BEGIN")
    for status in range(7):
        connection.execute(
            """
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
            INSERT INTO taskflow_jobs (id, status, queue, name, priority, created_at, due_at, awaits, claim, ended_at, fade_at)
            SELECT
              randomblob(16), ?2, i % 10, 1, 0, i, i, ?2 = 0, iif(?2 = 3, randomblob(28), NULL), iif(?2 > 3, i, NULL), iif(?2 > 3, i, NULL)
            FROM n WHERE ?1 > 0
            """.replace("?1", str(number // 7)).replace("?2", str(status))
        )
    connection.execute("COMMIT")
    connection.execute("ANALYZE")
    yield connection
    connection.close()


@pytest.mark.parametrize("name", INDEXES)
def test_a_statement_goes_by_its_indexes(filled: sqlite3.Connection, name: str) -> None:
    """It never reads the table from end to end, whatever SQLite believes of the sizes."""
    text = SQL.of_rows(name, 3)
    plan = [row[3] for row in filled.execute("EXPLAIN QUERY PLAN " + text, [None] * text.count("?"))]
    steps = [step for step in plan if "taskflow_" in step]
    assert not [step for step in steps if re.fullmatch(r"SCAN \w+", step)], plan
    used = {found for step in steps for found in re.findall(r"INDEX (\w+)|((?:INTEGER )?PRIMARY KEY)", step)}
    assert {index or key for index, key in used} <= INDEXES[name], plan


@pytest.mark.parametrize("name", [name for name in INDEXES if name.startswith("page_")] + ["to_purge_with_tag"])
def test_a_page_reads_its_jobs_in_order_and_does_not_sort(filled: sqlite3.Connection, name: str) -> None:
    """So a page of a million jobs reads the jobs of that page."""
    plan = [row[3] for row in filled.execute("EXPLAIN QUERY PLAN " + SQL[name], [None] * SQL[name].count("?"))]
    assert not [step for step in plan if "ORDER BY" in step], plan


def test_failed_jobs_are_counted_in_the_order_of_their_index(filled: sqlite3.Connection) -> None:
    """Neither the jobs themselves are read nor a list of them is sorted."""
    plan = [row[3] for row in filled.execute("EXPLAIN QUERY PLAN " + SQL["failure_parts"], [None] * 9)]
    [part] = [place for place, step in enumerate(plan) if step == "MATERIALIZE part"]
    assert plan[part + 1].startswith("SCAN main.taskflow_jobs USING COVERING INDEX"), plan
    assert "B-TREE" not in plan[part + 2], plan


async def test_an_empty_claim_does_not_see_what_is_scheduled(broker: SqliteBroker, path: Path) -> None:
    """Counted in SQLite's own steps, which no other program's load can change."""
    session = a_session()
    await broker.register(session)
    empty = await steps_of_claims(path)
    for _ in range(20):
        await broker.enqueue(envelopes(1_000, after=3_600.0))
    for number in range(300):
        await broker.console.pause(f"queue-{number}")
        await broker.console.resume(f"queue-{number}")

    assert await steps_of_claims(path) <= empty + 10


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("page_held", (0,), (1 << 40,)),
        ("page_scheduled", (-1, -1, -1), (50_000, 0, 0)),
        ("page_ready", (1, 0, -1, 0), (1, 0, 50_000, 0)),
        ("page_running", (b"",), (b"\xff",)),
        ("page_failed", (1, 1 << 40, 0), (1, 1, 0)),
        ("page_done", (1, 1 << 40, 0), (1, 1, 0)),
    ],
)
def test_a_later_page_costs_no_more_than_the_first(
    filled: sqlite3.Connection, name: str, first: tuple[object, ...], last: tuple[object, ...]
) -> None:
    """It begins where the one before has ended. Otherwise all pages would cost the square of their number."""
    any_job = (0, *(None,) * 10)
    assert steps_of(filled, name, (*any_job, *last, 10)) <= steps_of(filled, name, (*any_job, *first, 10)) + 20


@pytest.mark.parametrize(("name", "status"), [("faded_jobs", None), ("forget_jobs", 4)])
def test_upkeep_reads_no_rows_of_its_other_duties(filled: sqlite3.Connection, name: str, status: int | None) -> None:
    """A burst of jobs ends, and later its ids are forgotten. If each call read all rows that await the next ones, writers would wait."""
    filled.execute("BEGIN")
    filled.execute("UPDATE taskflow_jobs SET status = ? WHERE fade_at IS NOT NULL", (status,))
    assert steps_of(filled, name, (1 << 62, 10)) < 100
    filled.execute("ROLLBACK")


def steps_of(connection: sqlite3.Connection, name: str, parameters: tuple[object, ...]) -> int:
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    connection.set_progress_handler(count, 1)
    connection.execute(SQL[name], parameters).fetchall()
    connection.set_progress_handler(None, 1)
    return steps


async def steps_of_claims(path: Path) -> int:
    """Of the statements that an empty claim makes."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    with connected(path) as connection:
        connection.execute("SELECT 1 FROM taskflow_jobs LIMIT 1").fetchall()
        connection.set_progress_handler(count, 1)
        connection.execute(SQL["ready_queues"], (100, 1)).fetchall()
        connection.execute(SQL["ready_jobs"], (65_536, 65_536, 65_536, 1, 0, 100)).fetchall()
        connection.execute(SQL["next_due"]).fetchall()
        connection.set_progress_handler(None, 1)
    return steps


def test_every_statement_is_used() -> None:
    """And none is missing: a name that Python asks for stands in a file."""
    package = Path(__file__).parents[3] / "taskflow" / "broker" / "sqlite"
    code = "\n".join(file.read_text() for file in package.glob("*.py"))
    statements = "\n".join(file.read_text() for file in package.glob("*.sql"))
    named = set(re.findall(r"^-- name: (\w+)$", statements, re.MULTILINE))
    included = set(re.findall(r"@(\w+)", statements)) - lists().keys()
    composed = included | {before + kind for before in ("oldest_", "bury_oldest_", "drop_tags_of_oldest_") for kind in ("done", "failed")}
    assert {name for name in named if f'"{name}"' not in code} == composed
    for name in named:
        assert SQL[name]
