"""`taskflow explain ID`: explains why a job is in its current state, and what to do about it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from taskflow.app.app import App
from taskflow.app.explanation import Facts, Reason, facts_of, own_facts_of, reasons
from taskflow.cli.command import existing_broker, ids_of, on_store, show_each
from taskflow.cli.terminal import BOLD, GREEN, OF_STATUS, hanging, only, painted, room
from taskflow.model.ids import id_text
from taskflow.model.printable import INDENT, message, one_line
from taskflow.model.record import Record, Status

MAX_LINES: Final = 5
MAX_LENGTH: Final = 1_000


@on_store
async def explain(app: App, arguments: argparse.Namespace) -> int:
    ids, broker = ids_of(arguments.ids), await existing_broker(app)
    records = await broker.read(ids)
    facts: dict[tuple[str, Status], Facts] = {}  # shared by all jobs with the same queue and status
    own = {record.id: await own_facts_of(broker, record) for record in records if record is not None}
    for record in records:
        if record is not None and (record.queue, record.status) not in facts:
            facts[record.queue, record.status] = await facts_of(broker.admin, record, datetime.now(UTC))

    def why(record: Record) -> list[Reason]:
        return reasons(record, facts[record.queue, record.status], own[record.id])

    def document(record: Record) -> dict[str, object]:
        return {"id": id_text(record.id), **only(record, "status", "job", "queue"), "reasons": why(record)}

    return await show_each(broker, arguments, ids, records, document, lambda record: _lines(record, why(record)))


def _lines(record: Record, why: list[Reason]) -> Iterator[str]:
    width, where = room(), f"{one_line(record.job)}  (queue {one_line(record.queue)})"
    head = f"{id_text(record.id)}  {painted(record.status, OF_STATUS.get(record.status))}"
    if len(f"{id_text(record.id)}  {record.status}  {where}") > width:
        yield head
        yield from hanging(INDENT, where, width)
    else:
        yield f"{head}  {where}"
    for number, reason in enumerate(why, 1):
        label = f"{number}. "
        for text in _shortened(reason.text).split("\n"):
            yield from (painted(line.rstrip(), BOLD if number == 1 else None) for line in hanging(label, text.removeprefix(INDENT), width))
            label = INDENT
        if reason.cure:
            yield from (painted(line, GREEN) for line in hanging("   -> ", one_line(reason.cure), width))


def _shortened(text: str) -> str:
    """Return the first lines of a reason, because a reason may contain an error's message, which can have thousands of lines."""
    head = "\n".join(text.split("\n", MAX_LINES)[:MAX_LINES])[:MAX_LENGTH]
    return message(head + ("..." if len(head) < len(text.rstrip()) else ""))
