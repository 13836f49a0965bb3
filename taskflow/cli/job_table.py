"""The table of `taskflow jobs`: as many columns as fit the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from taskflow.cli.terminal import BOLD, OF_STATUS, cut, padded, painted, room, width
from taskflow.cli.time_format import span
from taskflow.model.ids import id_text
from taskflow.model.printable import INDENT, MAX_CHARACTERS, one_line
from taskflow.model.record import Record, Status
from taskflow.model.schedule import SCHEDULE

LEAST_DETAIL: Final = 30
"""A detail is never cut to fewer characters than these."""

LEAST_JOB: Final = 12
BASIC: Final = 6


class Column(NamedTuple):
    """A column of the table.

    `keep`  its importance on a narrow terminal, where the less important ones are left out; those of at least `BASIC` stay
    `most`  its maximum width on a terminal, in characters
    """

    title: str
    cell: Callable[[Record, datetime], str]
    keep: int
    most: int = 36


def table(records: Sequence[Record]) -> Iterator[str]:
    """Yield a header and a line for each record. A column without any text is left out. On a terminal, text is truncated to its width. If
    it is too narrow for the columns and the longest detail, each detail has a separate line, and the least important columns go."""
    now, most = datetime.now(UTC), room()
    rows = {column: [one_line(column.cell(record, now)) for record in records] for column in COLUMNS}
    widths = {column: min(max(len(column.title), *map(width, cells)), column.most) for column, cells in rows.items()}
    details = [one_line(detail(record)) for record in records]
    shown = filled = [column for column in COLUMNS if any(rows[column])]

    def left() -> int:
        return most - sum(widths[column] + 2 for column in shown)

    is_beside = any(details) and (most >= MAX_CHARACTERS or left() >= max(map(width, ("DETAIL", *details))))
    if left() < -2:
        shown = [column for column in filled if column.keep >= BASIC]
        for column in sorted(set(filled) - set(shown), key=lambda column: -column.keep):
            if left() - widths[column] >= 0:
                shown = [each for each in filled if each in (*shown, column)]
    if left() < -2:
        widths[JOB] = max(LEAST_JOB, widths[JOB] + left() + 2)
    titles = [*(column.title.ljust(widths[column]) for column in shown), *["DETAIL"] * is_beside]
    yield painted("  ".join(titles).rstrip(), BOLD)
    for number, record in enumerate(records):
        cells = [painted(padded(rows[column][number], widths[column]), _color(column, record)) for column in shown]
        told = cut(details[number], max(LEAST_DETAIL, left() if is_beside else most - len(INDENT)))
        yield "  ".join([*cells, *[told] * is_beside]).rstrip()
        if told and not is_beside:
            yield f"{INDENT}{told}"


def detail(record: Record) -> str:
    """Return what matters most about a job in its present state: its error, or what it waits for."""
    schedule = f"by schedule {record.headers[SCHEDULE]}" if SCHEDULE in record.headers else ""
    return "  ".join(filter(None, (schedule, _why(record))))


def _why(record: Record) -> str:
    if record.unreadable:
        return f"unreadable: {'; '.join(map(str, record.unreadable))}"
    if record.reason or record.waiting_for:
        return (record.reason or record.waiting_for or "").partition("\n")[0]
    if record.progress and record.progress.note and record.status is Status.RUNNING:
        return record.progress.note
    if record.errors and not record.status.is_ended:
        return f"last error: {record.errors[-1].type}: {record.errors[-1].message}"
    return ""


def _color(column: Column, record: Record) -> int | None:
    return OF_STATUS.get(record.status) if column.title == "STATUS" else None


def _due(record: Record, now: datetime) -> str:
    return f"in {span((record.due_at - now).total_seconds())}" if record.status is Status.SCHEDULED else ""


JOB: Final = Column("JOB", lambda record, now: record.job, 7)
COLUMNS: Final = (
    Column("ID", lambda record, now: id_text(record.id), 9),
    Column("STATUS", lambda record, now: str(record.status), 8),
    Column("QUEUE", lambda record, now: record.queue, 4, 20),
    JOB,
    Column("AGE", lambda record, now: span((now - record.created_at).total_seconds()), 6),
    Column("TRY", lambda record, now: f"{record.attempt}/{record.max_attempts}", 5),
    Column("DUE", _due, 3),
)
