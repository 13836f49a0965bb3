"""`taskflow retry | cancel | purge | pause | resume`: changes the jobs and queues in a store."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from taskflow.app.app import App
from taskflow.broker.console import Console, JobFilter, Redone
from taskflow.broker.protocol import Broker
from taskflow.cli.exits import Exit
from taskflow.cli.job_filter import all_or_filters, doubt_queue, filter_of, ids_of, ids_or_filters
from taskflow.cli.progress import Bar
from taskflow.cli.store import what_is_there, with_store
from taskflow.model.envelope import check_queue
from taskflow.model.errors import ConfigurationError
from taskflow.model.ids import id_text
from taskflow.model.record import ENDED, LIVE, WAITING, Status

PAGE: Final = 500
# The statuses that each command acts on: DEFAULTS without --status, else any of POSSIBLE.
DEFAULTS: Final = {"retry": {Status.FAILED}, "cancel": LIVE, "purge": ENDED}
POSSIBLE: Final = {"retry": {Status.FAILED, Status.CANCELLED}, "cancel": LIVE, "purge": ENDED | WAITING}


@dataclass(frozen=True)
class ActionResult:
    """The outcome of a command: how many jobs it changed, how many running ones it asked to stop, and why it refused each of the rest."""

    count: int = 0
    asked: int = 0
    refused: Mapping[bytes, str] = field(default_factory=dict)

    @property
    def seen(self) -> int:
        return self.count + self.asked + len(self.refused)

    def __add__(self, more: ActionResult) -> ActionResult:
        return ActionResult(self.count + more.count, self.asked + more.asked, {**self.refused, **more.refused})


def run(arguments: argparse.Namespace) -> int:
    return with_store(arguments, _act)


async def _act(app: App, arguments: argparse.Namespace) -> int:
    if arguments.command in ("pause", "resume"):
        return await _pause(app.broker().console, arguments)
    ids_or_filters(arguments)
    if arguments.ids:
        return await _on_ids(app, arguments)
    all_or_filters(arguments)
    return await _on_filtered(app, arguments)


async def _pause(console: Console, arguments: argparse.Namespace) -> int:
    """Pause or resume queues. A queue may be paused before its first job, but an unknown name
    is usually a typo, so it is reported on stderr."""
    try:
        names = [check_queue(name) for name in arguments.names]
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    for name in names:
        await doubt_queue(console, name)
        await (console.pause(name) if arguments.command == "pause" else console.resume(name))
        print(f"{arguments.command}d {name}")
    return Exit.OK


async def _on_ids(app: App, arguments: argparse.Namespace) -> int:
    ids = ids_of(arguments.ids)
    broker = what_is_there(app)
    if arguments.dry_run:
        records = await broker.read(ids)
        found = sum(record is not None and record.status in POSSIBLE[arguments.command] for record in records)
        print(f"would {arguments.command} {found:,}")
        return Exit.NOT_FOUND if None in records else Exit.OK if found == len(ids) else Exit.FAILED
    done = await _apply(broker, arguments.command, ids)
    for job_id, why in done.refused.items():
        print(f"taskflow: {id_text(job_id)} was not {_past(arguments.command)}: {why}", file=sys.stderr)
    _print_done(arguments.command, done)
    return Exit.NOT_FOUND if UNKNOWN in done.refused.values() else Exit.FAILED if done.refused else Exit.OK


async def _on_filtered(app: App, arguments: argparse.Namespace) -> int:
    job_filter = _checked_filter(arguments)
    broker = what_is_there(app)
    if not await doubt_queue(broker.console, job_filter.queue):
        return Exit.NOT_FOUND
    total = await _count(broker.console, job_filter)
    if arguments.dry_run:
        print(f"would {arguments.command} {total:,}")
        return Exit.OK
    bar = Bar(total)
    done = await (_purge(broker, job_filter, bar) if arguments.command == "purge" else _go_through(broker, job_filter, bar, arguments))
    bar.close()
    refusals = Counter(done.refused.values())
    for why, count in refusals.items():
        print(f"taskflow: {count:,} were not {_past(arguments.command)}: {why}", file=sys.stderr)
    _print_done(arguments.command, done)
    return Exit.FAILED if Redone.KEY_TAKEN.value in refusals else Exit.OK


def _print_done(command: str, done: ActionResult) -> None:
    asked = f", asked {done.asked:,} running to stop" if done.asked else ""
    print(f"{_past(command)} {done.count:,}{asked}")


async def _count(console: Console, job_filter: JobFilter) -> int:
    """Count the jobs that match the filter. For live jobs, the counts of the queues suffice; for ended
    jobs, those counts include some that are no longer kept."""
    if LIVE.issuperset(job_filter.statuses) and job_filter == JobFilter(queue=job_filter.queue, statuses=job_filter.statuses):
        queues = [queue for queue in await console.queues() if job_filter.queue in (None, queue.name)]
        return sum(queue.counts[status] for queue in queues for status in job_filter.statuses)
    return sum([len(ids) async for ids in _pages(console, job_filter)])


def _checked_filter(arguments: argparse.Namespace) -> JobFilter:
    command = arguments.command
    job_filter = filter_of(arguments, DEFAULTS[command])
    for status in job_filter.statuses:
        if status not in POSSIBLE[command]:
            able = ", ".join(sorted(POSSIBLE[command]))
            raise ConfigurationError(f"{command} --status {status}: allowed statuses are {able}")
    return job_filter


async def _purge(broker: Broker, job_filter: JobFilter, bar: Bar) -> ActionResult:
    """Purge at most as many jobs as there were at the start, so that newly added jobs cannot keep it running."""
    done = 0
    while (left := bar.total - done) > 0 and (dropped := await broker.console.purge(job_filter, limit=min(PAGE, left))) > 0:
        done += dropped
        bar.show(done)
    return ActionResult(done)


async def _go_through(broker: Broker, job_filter: JobFilter, bar: Bar, arguments: argparse.Namespace) -> ActionResult:
    done = ActionResult()
    async for ids in _pages(broker.console, job_filter):
        done += await _apply(broker, arguments.command, ids)
        bar.show(min(bar.total, done.seen))
    return done


async def _apply(broker: Broker, command: str, ids: Sequence[bytes]) -> ActionResult:
    if command == "retry":
        answers = await broker.console.retry(ids)
        whys = (UNKNOWN if answer is Redone.UNKNOWN else answer.value for answer in answers)
        refused = {job_id: why for job_id, answer, why in zip(ids, answers, whys, strict=True) if answer is not Redone.OK}
        return ActionResult(len(ids) - len(refused), refused=refused)
    found = await broker.cancel(ids)
    refused = {job_id: _uncancelled(status) for job_id, status in zip(ids, found, strict=True) if status is None or status.is_ended}
    asked = found.count(Status.RUNNING)
    return ActionResult(len(ids) - len(refused) - asked, asked, refused)


UNKNOWN: Final = "it is unknown or no longer kept"


def _uncancelled(status: Status | None) -> str:
    return UNKNOWN if status is None else f"it has already {status}" if status is not Status.CANCELLED else "it was already cancelled"


async def _pages(console: Console, job_filter: JobFilter) -> AsyncIterator[list[bytes]]:
    """Yield pages of job ids, newest first. Jobs that no longer match after the command has changed them do not shift the later pages."""
    before: bytes | None = None
    while records := await console.browse(job_filter, before=before, limit=PAGE):
        before = records[-1].id
        yield [record.id for record in records]


def _past(command: str) -> str:
    return {"retry": "retried", "cancel": "cancelled", "purge": "purged"}[command]
