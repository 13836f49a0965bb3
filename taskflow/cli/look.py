"""`taskflow status | queues | jobs`: shows the contents of a store."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import datetime
from typing import Any, Final

from taskflow.app.app import App
from taskflow.broker.console import QueueRecord
from taskflow.broker.url import masked
from taskflow.cli.exits import Exit
from taskflow.cli.job_filter import doubt_queue, filter_of, ids_of, ids_or_filters
from taskflow.cli.json_text import json_text
from taskflow.cli.parser import columns
from taskflow.cli.store import what_is_there, with_store
from taskflow.model.clock import instant_of
from taskflow.model.ids import id_text
from taskflow.model.printable import MAX_CHARACTERS, indented, message, one_line
from taskflow.model.record import Record, Status
from taskflow.model.schedule import SCHEDULE
from taskflow.model.schedule_plan import scheduled_for
from taskflow.model.session import SessionRecord


def run(arguments: argparse.Namespace) -> int:
    return with_store(arguments, VIEWS[arguments.command])


async def _status(app: App, arguments: argparse.Namespace) -> int:
    broker = what_is_there(app)
    queues, workers = await broker.console.queues(), await broker.console.workers()
    metrics, schedules = await broker.console.metrics(), await broker.console.schedules()
    regular = {
        "stored": len(schedules),
        "paused": sum(schedule.is_paused for schedule in schedules),
        "asleep": sum(schedule.asleep_since is not None for schedule in schedules),
    }
    if arguments.json:
        _print_json(
            {
                "broker": masked(app.broker_url()),
                "queues": [_queue_json(queue) for queue in queues],
                "workers": [_worker_json(worker) for worker in workers],
                "schedules": regular,
                "totals": metrics.totals,
            }
        )
        return Exit.OK
    print(f"broker   {one_line(masked(app.broker_url()))}")
    print(f"workers  {len(workers)}")
    for worker in workers:
        dying = ", dying" if worker.is_dying else ""
        print(f"  {one_line(worker.session.name)}: {worker.leases} leased, heartbeat {worker.seconds_since_beat:.0f} s ago{dying}")
    if schedules:
        details = ", ".join(f"{count:,} {word}" for word, count in regular.items() if count and word != "stored")
        print(f"schedules  {len(schedules):,}{f' ({details})' if details else ''}")
    _print_queues(queues)
    return Exit.OK


async def _queues(app: App, arguments: argparse.Namespace) -> int:
    queues = await what_is_there(app).console.queues()
    if arguments.json:
        _print_json([_queue_json(queue) for queue in queues])
    else:
        _print_queues(queues)
    return Exit.OK


async def _jobs(app: App, arguments: argparse.Namespace) -> int:
    ids_or_filters(arguments)
    if arguments.ids:
        return await _show(app, arguments)
    job_filter = filter_of(arguments)
    [before] = ids_of([arguments.before]) if arguments.before else [None]
    broker = what_is_there(app)
    is_known = await doubt_queue(broker.console, job_filter.queue)
    records = await broker.console.browse(job_filter, before=before, limit=arguments.limit)
    if arguments.json:
        _print_json([_record_json(record) for record in records])
        return Exit.OK if is_known else Exit.NOT_FOUND
    for record in records:
        print(_row(record))
    if len(records) == arguments.limit:
        print(f"there may be more: --before {id_text(records[-1].id)}", file=sys.stderr)
    return Exit.OK if is_known else Exit.NOT_FOUND


async def _show(app: App, arguments: argparse.Namespace) -> int:
    ids = ids_of(arguments.ids)
    records = await what_is_there(app).read(ids)
    if arguments.json:
        _print_json([None if record is None else _record_json(record) for record in records])
    else:
        for job_id, record in zip(ids, records, strict=True):
            _print_record(job_id, record)
    return Exit.OK if all(record is not None for record in records) else Exit.NOT_FOUND


VIEWS: Final = {"status": _status, "queues": _queues, "jobs": _jobs}


def _print_record(job_id: bytes, record: Record | None) -> None:
    if record is None:
        print(f"taskflow: job {id_text(job_id)} is unknown or no longer kept", file=sys.stderr)
        return
    for name, value in _record_json(record).items():
        if name not in ("errors", "unreadable") and value not in (None, {}, [], False, ""):
            print(f"{name:16} {one_line(value)}")
    for field in record.unreadable:
        print(f"{'unreadable':16} {one_line(field)}\n{'':16} its bytes begin with {field.raw.hex() or 'nothing'}")
    for error in record.errors:
        print(f"\nattempt {error.attempt}: {message(f'{error.type}: {error.message}')}\n{indented(error.traceback)}".rstrip())
    print()


def _print_queues(queues: list[QueueRecord]) -> None:
    print(f"{'queue':20} " + " ".join(f"{status:>10}" for status in Status))
    for queue in queues:
        name = f"{one_line(queue.name)} (paused)" if queue.is_paused else one_line(queue.name)
        print(f"{name:20} " + " ".join(f"{queue.counts.get(status, 0):>10,}" for status in Status))


def _row(record: Record) -> str:
    """Return one line about a job, truncated to the width of the terminal."""
    job_id = id_text(record.id)
    room = max(20, columns() - len(job_id) - 13) if sys.stdout.isatty() else MAX_CHARACTERS
    schedule = f"by schedule {record.headers[SCHEDULE]}  " if SCHEDULE in record.headers else ""
    text = f"{record.queue:12}  {record.job}  {schedule}{_brief(record)}".rstrip()
    return f"{job_id}  {_colored(record.status):9}  {one_line(text, room)}"


def _brief(record: Record) -> str:
    if record.unreadable:
        return f"unreadable: {'; '.join(map(str, record.unreadable))}"
    return record.reason or record.waiting_for or (record.progress.note if record.progress else "")


def _queue_json(queue: QueueRecord) -> dict[str, Any]:
    return {
        "name": queue.name,
        "paused": queue.is_paused,
        "counts": {str(status): queue.counts.get(status, 0) for status in Status},
        "oldest_ready_for": queue.oldest_ready_for,
        "next_due_in": queue.next_due_in,
    }


def _worker_json(worker: SessionRecord) -> dict[str, Any]:
    return {
        "name": worker.session.name,
        "queues": list(worker.session.queues),
        "concurrency": worker.session.concurrency,
        "leases": worker.leases,
        "seconds_since_beat": worker.seconds_since_beat,
        "dying": worker.is_dying,
    }


def _record_json(record: Record) -> dict[str, Any]:
    """Convert a record for JSON. Arguments and results are left out, because they
    may contain secrets, which logs and screens must not show."""
    fields = {
        name: getattr(record, name)
        for name in Record.__struct_fields__
        if name not in ("id", "payload", "result", "errors", "progress", "unreadable")
    }
    shown: dict[str, Any] = {"id": id_text(record.id), "status": record.status, "attempt": record.attempt}
    fields |= {"schedule": record.headers.get(SCHEDULE), "scheduled_for": scheduled_for(record.headers)}
    shown |= {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields.items()}
    shown["progress"] = None if record.progress is None else {"fraction": record.progress.fraction, "note": record.progress.note}
    shown["unreadable"] = [{"column": u.column, "problem": u.problem, "bytes": u.raw.hex()} for u in record.unreadable]
    shown["errors"] = [
        {"type": e.type, "message": e.message, "traceback": e.traceback, "attempt": e.attempt, "at": instant_of(e.at).isoformat()}
        for e in record.errors
    ]
    return shown


_COLORS = {Status.FAILED: 31, Status.SUCCEEDED: 32, Status.RUNNING: 36, Status.CANCELLED: 33}


def _colored(status: Status) -> str:
    color = _COLORS.get(status)
    return f"\033[{color}m{status:9}\033[0m" if color and _is_for_people() else str(status)


def _is_for_people() -> bool:
    """Return True if stdout is a terminal with colours and the user has not disabled them (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _print_json(value: Any) -> None:
    print(json_text(value, indent=2))
