"""`taskflow jobs`: lists the jobs of a store, or shows some of them in full."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from taskflow.app.app import App
from taskflow.app.job_display import AT_A_GLANCE, IN_FULL, arguments_of, detail, detailed_json, record_json, result_of
from taskflow.cli import terminal
from taskflow.cli.command import existing_broker, filter_of, given_filters, ids_of, is_known_queue, on_store, report_unknown_job, show_each
from taskflow.cli.exit_codes import Exit
from taskflow.cli.terminal import MIN_NAME, OF_STATUS, Column, ago, hanging, painted
from taskflow.model.codec import Limits
from taskflow.model.errors import ConfigurationError
from taskflow.model.ids import id_text
from taskflow.model.masking import HIDDEN
from taskflow.model.printable import MAX_CHARACTERS, duration, indented, message, one_line, span
from taskflow.model.record import Moment, Record, Status, timeline

MAX_VALUE: Final = 1_000  # maximum characters of one argument, unless everything is shown
FIRST_MOMENTS, LAST_MOMENTS = 5, 25
MAX_WIDTH: Final = 200
MAX_DETAIL: Final = 500  # maximum characters of a detail on separate lines


@on_store
async def jobs(app: App, arguments: argparse.Namespace) -> int:
    given_filters(arguments)
    if arguments.ids:
        return await _show(app, arguments)
    view = filter_of(arguments)
    broker = await existing_broker(app)
    is_known = await is_known_queue(broker.admin, view.queue)
    try:
        page = await broker.admin.page(view, cursor=arguments.cursor, limit=arguments.limit)
    except ValueError as error:
        raise ConfigurationError(f"--cursor: {error}") from error
    if is_known and not page.records and arguments.cursor is None:
        await report_unknown_job(broker.admin, view.job)
    document = {"jobs": map(record_json, page.records), "cursor": page.cursor, "examined": page.examined}
    terminal.show(arguments, document, job_table(page.records) if page.records else ())
    if not arguments.json and page.cursor is not None:
        more = f"read {page.examined:,} jobs; continue with" if page.stopped_early else "there may be more:"
        print(f"{more} --cursor {page.cursor}", file=sys.stderr)
    elif not arguments.json and is_known and not page.records:
        print("no jobs match" if arguments.cursor is None else "no more jobs match", file=sys.stderr)
    return Exit.OK if is_known else Exit.NOT_FOUND


async def _show(app: App, arguments: argparse.Namespace) -> int:
    ids, limits, broker = ids_of(arguments.ids), app.limits, await existing_broker(app)
    records = await broker.read(ids)

    def lines(record: Record) -> Iterator[str]:
        return _Page(record, limits, is_full=arguments.verbose).lines(datetime.now(UTC))

    return await show_each(broker, arguments, ids, records, lambda record: detailed_json(record, limits), lines)


def job_table(records: Sequence[Record]) -> Iterator[str]:
    """Return the lines of a table of these jobs. A column without any text is left out."""
    filled = [column for column in _COLUMNS if any(map(column.cell, records))]
    return terminal.table(filled, records, detail=_DETAIL if any(map(detail, records)) else None)


_COLUMNS: Final = (
    Column("ID", lambda record: id_text(record.id)),
    Column("STATUS", lambda record: record.status, color=lambda record: OF_STATUS.get(record.status)),
    Column("QUEUE", lambda record: record.queue, keep=2, most=20),
    Column("JOB", lambda record: record.job, least=MIN_NAME, most=36),
    Column("AGE", lambda record: ago(record.created_at)),
    Column("TRY", lambda record: f"{record.attempt}/{record.max_attempts}"),
    Column("DUE", lambda record: f"in {_until(record.due_at)}" if record.status is Status.SCHEDULED else "", keep=1),
)
_DETAIL: Final = Column("DETAIL", detail, most=MAX_DETAIL)


def _until(at: datetime) -> str:
    return span((at - datetime.now(UTC)).total_seconds())


# Fields that the text output doesn't show as a name and a value.
_ELSEWHERE: Final = {
    *("errors", "unreadable", "headers", "progress", "epoch", "max_attempts"),
    *("created_at", "due_at", "claimed_at", "started_at", "ended_at", "expires_at"),
}


class _Page:
    """A job as lines of text. With `is_full`, long values and the tracebacks of all errors are shown."""

    def __init__(self, record: Record, limits: Limits, *, is_full: bool) -> None:
        self._record = record
        self._limits = limits
        self._width = min(terminal.room(), MAX_WIDTH) if sys.stdout.isatty() else MAX_CHARACTERS
        self._is_full = is_full
        self._display = IN_FULL if is_full else AT_A_GLANCE
        self._most = MAX_CHARACTERS if is_full else MAX_VALUE

    def lines(self, now: datetime) -> Iterator[str]:
        record, fields = self._record, record_json(self._record)
        for field, value in self._set_fields(fields):
            color = OF_STATUS.get(record.status) if field == "status" else None
            yield from (painted(line, color) for line in self._named(field.replace("_", " "), value))
        for spoilt in record.unreadable:
            yield from self._named("unreadable", one_line(spoilt))
            yield from self._named("", f"its bytes begin with {spoilt.raw.hex() or 'nothing'}")
        arguments, problem = arguments_of(record, self._limits, self._display)
        yield from self._section("arguments", arguments, problem or "none")
        yield from self._section("headers", fields["headers"], "")
        yield from self._timeline(now)
        for error in record.errors if self._is_full else record.errors[-1:]:
            yield f"\nattempt {error.attempt}: {message(f'{error.type}: {error.message}')}\n{indented(error.traceback)}".rstrip()

    def _set_fields(self, fields: dict[str, Any]) -> Iterator[tuple[str, object]]:
        record, progress = self._record, self._record.progress
        fields |= {"attempt": f"{record.attempt} of {record.max_attempts}", "tags": ", ".join(record.tags)}
        for name, value in fields.items():
            if name not in _ELSEWHERE and value not in (None, "", False, 0):
                value = f"{duration(value)} from ready to start" if name == "queue_wait" else value
                yield name, value.isoformat() if isinstance(value, datetime) else value
        if progress is not None:
            which = " of the last run" if record.status.is_waiting else ""
            yield "progress", f"{progress.fraction:.0%}{which}{f': {progress.note}' if progress.note else ''}"
        result, problem = result_of(record, self._limits, self._display)
        if problem is not None or record.result:
            yield "result", problem or _text_of(result)

    def _section(self, title: str, values: dict[str, Any] | None, otherwise: str) -> Iterator[str]:
        if values:
            yield title
            label = min(max(map(len, map(one_line, values))), 24)
            for name, value in values.items():
                yield from hanging(f"  {one_line(name, 200):{label}}  ", one_line(_text_of(value), self._most), self._width)
        elif otherwise:
            yield from self._named(title, otherwise)

    def _named(self, name: str, value: object) -> Iterator[str]:
        return hanging(f"{name:16} ", one_line(value, self._most), self._width)

    def _timeline(self, now: datetime) -> Iterator[str]:
        """Yield a line for each moment, with the time since the previous one: the duration of a run or a wait."""
        yield "timeline (UTC)"
        moments = timeline(self._record, now)
        left_out = 0 if self._is_full else max(0, len(moments) - FIRST_MOMENTS - LAST_MOMENTS)
        before: Moment | None = None
        for place, moment in enumerate(moments):
            if not FIRST_MOMENTS <= place < FIRST_MOMENTS + left_out:
                if before is None or before.at.date() != moment.at.date():
                    yield f"  {moment.at:%Y-%m-%d}"
                since = "" if before is None else f"+{duration((moment.at - before.at).total_seconds())}"
                label = f"  {moment.at.time().isoformat('milliseconds')} {since:>8}  "
                yield label + one_line(moment.text.partition("\n")[0], max(20, self._width - len(label)))
            elif place == FIRST_MOMENTS:
                yield f"  ... {left_out:,} lines left out; --verbose shows them"
            before = moment
        for number, what in ((self._record.snoozes, "snoozed"), (self._record.hand_backs, "handed back")):
            if number:
                yield f"  {what} {'once' if number == 1 else f'{number:,} times'}; those runs are not kept"


def _text_of(value: Any) -> str:
    return HIDDEN if value == HIDDEN else json.dumps(value, ensure_ascii=False)
