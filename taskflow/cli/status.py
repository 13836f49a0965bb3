"""`taskflow status | queues | workers`: shows the current state of a store's queues and workers, as tables or as JSON."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import msgspec

from taskflow.app.app import App
from taskflow.app.explanation import unknown_jobs
from taskflow.broker.admin import Admin, QueueInfo
from taskflow.broker.url import masked
from taskflow.cli import terminal
from taskflow.cli.command import existing_broker, on_store
from taskflow.cli.terminal import ALWAYS_SHOWN, DIM, MIN_NAME, OF_STATUS, RED, YELLOW, Column, ago, cut, only, painted, room, wrapped
from taskflow.model.errors import BrokerError
from taskflow.model.printable import json_text, one_line, span
from taskflow.model.record import Status
from taskflow.model.session import SessionRecord
from taskflow.model.transitions import Event

MAX_WORKERS: Final = 10  # maximum number of workers that `status` names; `taskflow workers` lists them all
MAX_HINTS: Final = 5

# The title of each rate, and the events that it counts.
RATES: Final[Mapping[str, tuple[str, tuple[Event, ...]]]] = {
    "enqueued": ("IN/S", (Event.ENQUEUE,)),
    "done": ("DONE/S", (Event.SUCCEED,)),
    "failed": ("FAIL/S", (Event.FAIL, Event.DISCARD)),
}
Rates = Mapping[str, Mapping[str, float]]  # events per second, by queue and then by kind
# The counts that are left out first if the rates are shown and the terminal is narrow.
_KEPT: Final = {Status.HELD: 1, Status.CANCELLED: 2, Status.SUCCEEDED: 3}


@on_store
async def status(app: App, arguments: argparse.Namespace) -> int:
    admin = (await existing_broker(app)).admin
    if arguments.watch is not None:
        return await watch(partial(Summary.read, app, admin), arguments.watch, is_json=arguments.json)
    summary = await Summary.read(app, admin)
    return terminal.show(arguments, summary.to_json(), summary.lines())


@on_store
async def queues(app: App, arguments: argparse.Namespace) -> int:
    found = await (await existing_broker(app)).admin.queues()
    return terminal.show(arguments, map(queue_json, found), queue_table(found))


@on_store
async def workers(app: App, arguments: argparse.Namespace) -> int:
    found = await (await existing_broker(app)).admin.workers()
    if not found and not arguments.json:
        print("no worker is running", file=sys.stderr)
    return terminal.show(arguments, map(worker_json, found), terminal.table(_WORKER_COLUMNS, found) if found else ())


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    broker: str
    at: float  # when it was read, on the monotonic clock
    queues: list[QueueInfo]
    workers: list[SessionRecord]
    schedules: dict[str, int]
    totals: dict[str, dict[str, int]]
    paused_jobs: Sequence[str] = ()
    unknown: Mapping[str, int] = {}  # the numbers of parked jobs that no running worker knows, by job name

    @classmethod
    async def read(cls, app: App, admin: Admin) -> Summary:
        schedules, queues, workers = await admin.schedules(), await admin.queues(), await admin.workers()
        return cls(
            broker=masked(app.broker_url()),
            queues=queues,
            workers=workers,
            paused_jobs=await admin.paused_jobs(),
            unknown=await unknown_jobs(admin, queues, [worker.session.jobs for worker in workers if worker.is_alive]),
            schedules={
                "stored": len(schedules),
                "paused": sum(schedule.is_paused for schedule in schedules),
                "asleep": sum(schedule.asleep_since is not None for schedule in schedules),
            },
            totals=(await admin.metrics()).totals,
            at=time.monotonic(),
        )

    def rates_since(self, before: Summary) -> Rates:
        """Return the rates of all queues since the summary `before`."""
        took = max(1e-9, self.at - before.at)

        def count(summary: Summary, queue: str, kind: str) -> int:
            return sum(summary.totals.get(queue, {}).get(event, 0) for event in RATES[kind][1])

        names = {*self.totals, *(queue.name for queue in self.queues)}
        return {name: {kind: max(0, count(self, name, kind) - count(before, name, kind)) / took for kind in RATES} for name in names}

    def lines(self, rates: Rates | None = None) -> Iterator[str]:
        yield f"broker     {cut(one_line(self.broker), room() - 11)}"
        yield f"workers    {len(self.workers):,}"
        for worker in self.workers[:MAX_WORKERS]:
            state = f": {_busy(worker)} busy, heartbeat {_beat(worker)}{', dying' if worker.is_dying else ''}"
            yield painted(f"  {cut(one_line(worker.session.name), room() - 2 - len(state))}{state}", _color(worker))
        if len(self.workers) > MAX_WORKERS:
            yield f"  and {len(self.workers) - MAX_WORKERS:,} more: `taskflow workers` lists them"
        if self.schedules["stored"]:
            details = ", ".join(f"{count:,} {word}" for word, count in self.schedules.items() if count and word != "stored")
            yield f"schedules  {self.schedules['stored']:,}{f' ({details})' if details else ''}"
        yield from queue_table(self.queues, rates)
        hints = list(_hints(self))
        if len(hints) > MAX_HINTS:
            hints[MAX_HINTS:] = [f"and {len(hints) - MAX_HINTS:,} more hints about other queues and jobs"]
        for hint in hints:
            yield from (painted(line, YELLOW) for line in wrapped(hint, room()))

    def to_json(self) -> dict[str, Any]:
        return {
            "broker": self.broker,
            "queues": map(queue_json, self.queues),
            "workers": map(worker_json, self.workers),
            **only(self, "schedules", "totals", "paused_jobs"),
            "unknown_jobs": dict(self.unknown),
        }


def _color(worker: SessionRecord) -> int | None:
    return RED if worker.is_dying else None if worker.is_alive else YELLOW


def _busy(worker: SessionRecord) -> str:
    return f"{worker.busy}/{worker.session.concurrency}"


def _beat(worker: SessionRecord) -> str:
    return f"{worker.seconds_since_beat:.0f}s ago"


_WORKER_COLUMNS: Final = (
    Column("NAME", lambda worker: worker.session.name + (" (dying)" if worker.is_dying else ""), color=_color, least=MIN_NAME),
    Column("BUSY", _busy),
    Column("HEARTBEAT", _beat, color=_color),
    Column("UP", lambda worker: ago(worker.registered_at), keep=2),
    Column("JOBS", lambda worker: len(worker.session.jobs) or "?", keep=1),
    Column("DEPLOY", lambda worker: one_line(worker.session.deploy, 24) or "-", keep=3),
    Column("QUEUES", lambda worker: ", ".join(worker.session.queues) or "all"),
)


def worker_json(worker: SessionRecord) -> dict[str, Any]:
    said = only(worker.session, "name", "queues", "concurrency", "jobs", "deploy")
    return said | only(worker, "registered_at", "leases", "busy", "seconds_since_beat") | {"dying": worker.is_dying}


def queue_table(queues: Sequence[QueueInfo], rates: Rates | None = None) -> Iterator[str]:
    counts = [_count_column(status, is_rated=rates is not None) for status in Status]
    return terminal.table([_NAME, *counts, _OLDEST, *([] if rates is None else [_rate_column(kind, rates) for kind in RATES])], queues)


_NAME: Final = Column("QUEUE", lambda queue: queue.name + (" (paused)" if queue.is_paused else ""), least=MIN_NAME)
_OLDEST: Final = Column("OLDEST", lambda queue: "" if queue.oldest_ready_for is None else span(queue.oldest_ready_for), is_number=True)


def _count_column(status: Status, *, is_rated: bool) -> Column:
    keep = _KEPT.get(status, ALWAYS_SHOWN) if is_rated or status is Status.HELD else ALWAYS_SHOWN

    def color(queue: QueueInfo) -> int | None:
        return OF_STATUS.get(status) if queue.counts.get(status) else DIM

    return Column(status.upper(), lambda queue: f"{queue.counts.get(status, 0):,}", keep, is_number=True, color=color)


def _rate_column(kind: str, rates: Rates) -> Column:
    def color(queue: QueueInfo) -> int | None:
        return RED if kind == "failed" and rates.get(queue.name, {}).get(kind) else None

    title, _ = RATES[kind]
    return Column(title, lambda queue: f"{rates[queue.name][kind]:,.1f}" if queue.name in rates else "-", is_number=True, color=color)


def _hints(summary: Summary) -> Iterator[str]:
    """Yield hints about paused queues and jobs, queues that no running worker takes jobs from, and jobs that no running worker knows."""
    alive = [worker.session for worker in summary.workers if worker.is_alive]
    for queue in summary.queues:
        ready = queue.counts.get(Status.READY, 0)
        if not ready:
            continue
        if queue.is_paused:
            yield f"{one_line(queue.name)} is paused: `taskflow resume {one_line(queue.name)}` ends the pause"
        elif not any(not session.queues or queue.name in session.queues for session in alive):
            yield f"no running worker takes jobs from {one_line(queue.name)}: start one with `taskflow worker MODULE`"
    for name in map(one_line, summary.paused_jobs):
        yield f"job {name} is paused: `taskflow resume --job {name}` ends the pause"
    for name, count in ((one_line(job), count) for job, count in summary.unknown.items()):
        yield f"no running worker knows the job {name} ({count:,} parked): deploy the code that sent it, or `taskflow cancel --job {name}`"


def queue_json(queue: QueueInfo) -> dict[str, Any]:
    counts = {str(status): queue.counts.get(status, 0) for status in Status}
    return {"name": queue.name, "paused": queue.is_paused, "counts": counts, **only(queue, "oldest_ready_for", "next_due_in")}


async def watch(read: Callable[[], Awaitable[Summary]], interval: float, *, is_json: bool) -> int:
    """Every `interval` seconds, show what `read` returns, until a signal ends the command. If the store stops answering, say so and
    keep trying."""
    before = await read()
    rates: Rates = {}
    trouble: str | None = None
    while True:
        now = datetime.now().astimezone()
        if is_json:
            print(json_text({"time": now.isoformat(), "trouble": trouble, **before.to_json(), "rates": rates}), flush=True)
        elif sys.stdout.isatty():
            troubles = [painted(line, RED) for line in wrapped(trouble, room())] if trouble else []
            _show_in_place([f"{now:%Y-%m-%d %H:%M:%S}   Ctrl-C ends", *troubles, *before.lines(rates)])
        else:
            lines = [trouble] if trouble else before.lines(rates)
            print(f"{now:%Y-%m-%d %H:%M:%S}", *lines, "", sep="\n", flush=True)
        await asyncio.sleep(interval)
        try:
            latest = await read()
            before, rates, trouble = latest, latest.rates_since(before), None
        except BrokerError as error:
            trouble = trouble or f"since {datetime.now():%H:%M:%S} the store does not answer: {one_line(error)}"


def _show_in_place(lines: list[str]) -> None:
    """Replace the terminal's contents with as many of these lines as fit, in one write, so that no half-drawn screen is visible."""
    rows = max(2, os.get_terminal_size(sys.stdout.fileno()).lines)
    shown = lines if len(lines) < rows else [*lines[: rows - 2], f"... {len(lines) - rows + 2} more lines"]
    with contextlib.suppress(BlockingIOError):
        sys.stdout.write("\033[H" + "".join(f"{line}\033[K\n" for line in shown) + "\033[J")
        sys.stdout.flush()
