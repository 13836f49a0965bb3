"""`taskflow explain ID`: says why a job is in its present state, and what to do about it."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from datetime import UTC, datetime
from typing import Any, Final

from taskflow.app.app import App
from taskflow.broker.console import Console, View
from taskflow.broker.paging import first
from taskflow.cli.diagnosis import Facts, Reason, reasons
from taskflow.cli.exit_codes import Exit
from taskflow.cli.job_filter import ids_of
from taskflow.cli.json_text import print_json
from taskflow.cli.store import existing_broker, with_store
from taskflow.cli.terminal import BOLD, GREEN, OF_STATUS, hanging, painted, room
from taskflow.model.ids import id_text
from taskflow.model.printable import INDENT, message, one_line
from taskflow.model.record import Record, Status
from taskflow.model.transitions import Event

SAMPLED_FOR: Final = 1.0
"""Seconds for which the rate of claims from a queue is measured."""

MOST_PLACES: Final = 1_000
"""The most jobs of a queue that are counted before a ready job."""

PLACES_AT_ONCE: Final = 200


def run(arguments: argparse.Namespace) -> int:
    return with_store(arguments, _explain)


async def _explain(app: App, arguments: argparse.Namespace) -> int:
    ids, broker = ids_of(arguments.ids), await existing_broker(app)
    records = await broker.read(ids)
    facts: dict[tuple[str, Status], Facts] = {}  # the same for all jobs of a queue with this status
    for record in records:
        if record is not None and (record.queue, record.status) not in facts:
            facts[record.queue, record.status] = await facts_of(broker.console, record, datetime.now(UTC))
    found = [[] if record is None else reasons(record, facts[record.queue, record.status]) for record in records]
    if arguments.json:
        told = [None if record is None else _json(record, why) for record, why in zip(records, found, strict=True)]
        print_json(told)
    else:
        for number, (job_id, record, why) in enumerate(zip(ids, records, found, strict=True)):
            if number:
                print()
            _print(job_id, record, why)
    return Exit.NOT_FOUND if None in records else Exit.OK


async def facts_of(console: Console, record: Record, now: datetime) -> Facts:
    """Ask for what matters in the job's state. The rate is measured only if other jobs are ready in the same queue."""
    if record.status in (Status.SUCCEEDED, Status.FAILED):
        return Facts(now=now)
    queue = next((queue for queue in await console.queues() if queue.name == record.queue), None)
    counts = {} if queue is None else queue.counts
    is_paused = queue is not None and queue.is_paused
    rate, places = None, dict[bytes, int]()
    if record.status is Status.READY and counts.get(Status.READY, 0) > 1:
        places = await _places(console, record.queue)
    if places and not is_paused:
        begun = time.monotonic()
        before = await _claims(console, record.queue)
        await asyncio.sleep(SAMPLED_FOR)
        rate = (await _claims(console, record.queue) - before) / (time.monotonic() - begun)
    return Facts(now=now, is_paused=is_paused, counts=counts, places=places, workers=await console.workers(), rate=rate)


async def _places(console: Console, queue: str) -> dict[bytes, int]:
    """Return how many jobs run before each of the first ready jobs of a queue, by id. The numbers end at `MOST_PLACES`."""
    view = View(statuses=(Status.READY,), queue=queue)
    return {record.id: place for place, record in enumerate(await first(console, view, MOST_PLACES, PLACES_AT_ONCE))}


async def _claims(console: Console, queue: str) -> int:
    return (await console.metrics()).totals.get(queue, {}).get(Event.CLAIM, 0)


def _print(job_id: bytes, record: Record | None, why: list[Reason]) -> None:
    if record is None:
        print(f"taskflow: job {id_text(job_id)} is unknown or no longer kept", file=sys.stderr)
        return
    width, where = room(), f"{one_line(record.job)}  (queue {one_line(record.queue)})"
    is_wide = len(f"{id_text(job_id)}  {record.status}  {where}") > width
    print(f"{id_text(job_id)}  {painted(record.status, OF_STATUS.get(record.status))}", end="\n" if is_wide else "  ")
    print(*hanging(INDENT if is_wide else "", where, width), sep="\n")
    for number, reason in enumerate(why, 1):
        label = f"{number}. "
        for text in _shortened(reason.text).split("\n"):
            for line in hanging(label, text.removeprefix(INDENT), width):
                print(painted(line.rstrip(), BOLD if number == 1 else None))
            label = INDENT
        if reason.cure:
            for line in hanging("   -> ", one_line(reason.cure), width):
                print(painted(line, GREEN))


MOST_LINES: Final = 5
MOST_CHARACTERS: Final = 1_000


def _shortened(text: str) -> str:
    """Return the head of a reason. The message of an error, which it may contain, can have thousands of lines."""
    head = "\n".join(text.split("\n", MOST_LINES)[:MOST_LINES])[:MOST_CHARACTERS]
    return message(head + ("..." if len(head) < len(text.rstrip()) else ""))


def _json(record: Record, why: list[Reason]) -> dict[str, Any]:
    return {
        "id": id_text(record.id),
        "status": record.status,
        "job": record.job,
        "queue": record.queue,
        "reasons": [{"text": reason.text, "cure": reason.cure} for reason in why],
    }
