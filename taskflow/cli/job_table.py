"""The table of `taskflow jobs`: as many columns as fit the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from taskflow.cli.progress_bar import LEAST_WIDTH, drawn
from taskflow.cli.table import LEAST_NAME, Column, fits, table
from taskflow.cli.terminal import OF_STATUS
from taskflow.cli.time_format import span
from taskflow.model.ids import id_text
from taskflow.model.printable import one_line
from taskflow.model.record import Record, Status
from taskflow.model.schedule import SCHEDULE

LONGEST_DETAIL: Final = 500
"""The maximum length of a detail, in characters, on separate lines."""


def job_table(records: Sequence[Record]) -> Iterator[str]:
    """Return the lines of the table. A column without any text is left out. On a terminal that is too narrow for the columns and the
    longest detail, each detail is wrapped on separate lines."""
    filled = [column for column in COLUMNS if any(map(column.cell, records))]
    if not any(map(detail, records)):
        return table(filled, records)
    if fits([*filled, DETAIL], records):
        return table([*filled, DETAIL], records)
    return table(filled, records, below=lambda record: one_line(detail(record), LONGEST_DETAIL))


def detail(record: Record) -> str:
    """Return what matters most about a job in its present state: its error, or what it waits for."""
    schedule = f"by schedule {record.headers[SCHEDULE]}" if SCHEDULE in record.headers else ""
    return "  ".join(filter(None, (schedule, _why(record))))


def _why(record: Record) -> str:
    if record.unreadable:
        return f"unreadable: {'; '.join(map(str, record.unreadable))}"
    if record.reason or record.waiting_for:
        return (record.reason or record.waiting_for or "").partition("\n")[0]
    if record.progress and record.status is Status.RUNNING:
        share = record.progress.fraction
        return f"{drawn(share, LEAST_WIDTH)} {share:.0%}  {record.progress.note}".rstrip()
    if record.errors and not record.status.is_ended:
        return f"last error: {record.errors[-1].type}: {record.errors[-1].message}"
    return ""


def _age(record: Record) -> str:
    return span((datetime.now(UTC) - record.created_at).total_seconds())


def _due(record: Record) -> str:
    return f"in {span((record.due_at - datetime.now(UTC)).total_seconds())}" if record.status is Status.SCHEDULED else ""


COLUMNS: Final = (
    Column("ID", lambda record: id_text(record.id)),
    Column("STATUS", lambda record: record.status, color=lambda record: OF_STATUS.get(record.status)),
    Column("QUEUE", lambda record: record.queue, keep=2, most=20),
    Column("JOB", lambda record: record.job, least=LEAST_NAME, most=36),
    Column("AGE", _age),
    Column("TRY", lambda record: f"{record.attempt}/{record.max_attempts}"),
    Column("DUE", _due, keep=1),
)
DETAIL: Final = Column("DETAIL", detail)
