"""`taskflow jobs ID`: shows all that is known about a job."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from taskflow.app.app import App
from taskflow.cli.base_parser import columns
from taskflow.cli.exit_codes import Exit
from taskflow.cli.job_filter import ids_of
from taskflow.cli.job_json import IN_FULL, arguments_of, detailed_json, record_json, result_of
from taskflow.cli.json_text import print_json
from taskflow.cli.store import existing_broker
from taskflow.cli.terminal import OF_STATUS, painted
from taskflow.cli.time_format import duration
from taskflow.model.codec import Limits
from taskflow.model.ids import id_text
from taskflow.model.masking import HIDDEN, DisplayLimits
from taskflow.model.printable import MAX_CHARACTERS, indented, message, one_line
from taskflow.model.record import Moment, Record, timeline

AT_A_GLANCE: Final = DisplayLimits(characters=400, items=20, levels=4)
MOST_OF_VALUE: Final = 1_000
"""The maximum number of characters of one argument, unless all is shown."""

FIRST_MOMENTS, LAST_MOMENTS = 5, 25
WIDEST: Final = 200
LABEL: Final = 16

_ELSEWHERE: Final = (
    *("errors", "unreadable", "headers", "progress", "epoch", "max_attempts"),
    *("created_at", "due_at", "claimed_at", "started_at", "ended_at", "expires_at"),
)
"""Fields that the text shows in another way than by their name and value."""


async def show(app: App, arguments: argparse.Namespace) -> int:
    ids, limits = ids_of(arguments.ids), app.limits
    records = await (await existing_broker(app)).read(ids)
    if arguments.json:
        print_json([None if record is None else detailed_json(record, limits) for record in records])
    else:
        width = min(columns(), WIDEST) if sys.stdout.isatty() else MAX_CHARACTERS
        for number, (job_id, record) in enumerate(zip(ids, records, strict=True)):
            if number:
                print()
            if record is None:
                print(f"taskflow: job {id_text(job_id)} is unknown or no longer kept", file=sys.stderr)
            else:
                for line in _Page(limits, width, is_full=arguments.verbose).lines(record, datetime.now(UTC)):
                    print(line)
    return Exit.OK if all(record is not None for record in records) else Exit.NOT_FOUND


class _Page:
    """A job as lines of text. If the page `is_full`, long values and the tracebacks of all errors are shown."""

    def __init__(self, limits: Limits, width: int, *, is_full: bool) -> None:
        self._limits = limits
        self._width = width
        self._is_full = is_full
        self._display = IN_FULL if is_full else AT_A_GLANCE

    def lines(self, record: Record, now: datetime) -> Iterator[str]:
        for field, value in self._fields(record):
            name = field.replace("_", " ")
            color = OF_STATUS.get(record.status) if name == "status" else None
            yield from (painted(line, color) for line in self._named(name, one_line(value, self._most)))
        for spoilt in record.unreadable:
            yield from self._named("unreadable", one_line(spoilt))
            yield from self._named("", f"its bytes begin with {spoilt.raw.hex() or 'nothing'}")
        arguments, problem = arguments_of(record, self._limits, self._display)
        yield from self._section("arguments", arguments, problem or "none")
        yield from self._section("headers", record_json(record)["headers"], "")
        yield from self._time_line(record, now)
        yield from self._tracebacks(record)

    @property
    def _most(self) -> int:
        return MAX_CHARACTERS if self._is_full else MOST_OF_VALUE

    def _fields(self, record: Record) -> Iterator[tuple[str, object]]:
        fields = record_json(record)
        fields["attempt"] = f"{record.attempt} of {record.max_attempts}"
        fields["tags"] = ", ".join(record.tags)
        for name, value in fields.items():
            if name not in _ELSEWHERE and value not in (None, "", False, 0):
                yield name, f"{duration(value)} from ready to start" if name == "queue_wait" else value
        if record.progress is not None:
            which = " of the last run" if record.status.is_waiting else ""
            yield "progress", f"{record.progress.fraction:.0%}{which}{f': {record.progress.note}' if record.progress.note else ''}"
        result, problem = result_of(record, self._limits, self._display)
        if problem is not None or record.result:
            yield "result", problem or _text_of(result)

    def _section(self, title: str, values: dict[str, Any] | None, otherwise: str) -> Iterator[str]:
        if values:
            yield title
            label = min(max(map(len, map(one_line, values))), 24)
            for name, value in values.items():
                yield from self._wrapped(f"  {one_line(name, 200):{label}}  ", one_line(_text_of(value), self._most))
        elif otherwise:
            yield from self._named(title, one_line(otherwise, self._most))

    def _named(self, name: str, text: str) -> Iterator[str]:
        yield from self._wrapped(f"{name:{LABEL}} ", text)

    def _wrapped(self, label: str, text: str) -> Iterator[str]:
        if len(label) + len(text) <= self._width:
            yield label + text
            return
        first, *rest = textwrap.wrap(text, max(self._width - len(label), 20), break_on_hyphens=False, drop_whitespace=False) or [""]
        yield label + first.rstrip()
        for line in rest:
            yield " " * len(label) + line.strip()

    def _time_line(self, record: Record, now: datetime) -> Iterator[str]:
        """Show each moment with the time since the one before: how long a run or a wait has lasted."""
        yield "time line (UTC)"
        moments = timeline(record, now)
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
        for number, what in ((record.snoozes, "snoozed"), (record.hand_backs, "handed back")):
            if number:
                yield f"  {what} {'once' if number == 1 else f'{number:,} times'}; those runs are not kept"

    def _tracebacks(self, record: Record) -> Iterator[str]:
        errors: Sequence[Any] = record.errors if self._is_full else record.errors[-1:]
        for error in errors:
            yield f"\nattempt {error.attempt}: {message(f'{error.type}: {error.message}')}\n{indented(error.traceback)}".rstrip()


def _text_of(value: Any) -> str:
    return HIDDEN if value == HIDDEN else json.dumps(value, ensure_ascii=False)
