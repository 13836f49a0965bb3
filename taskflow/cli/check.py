"""`taskflow check MODULE`: checks whether the waiting and running jobs would run with this code."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from taskflow.app.app import App, default_app
from taskflow.app.explanation import short_reason
from taskflow.broker.admin import Admin, QueueInfo, View
from taskflow.broker.paging import AT_ONCE, pages
from taskflow.cli.command import checked, existing_broker, is_known_queue, with_store
from taskflow.cli.exit_codes import Exit
from taskflow.cli.modules import import_jobs
from taskflow.cli.terminal import GREEN, RED, YELLOW, Column, hanging, painted, room, show, table, wrapped
from taskflow.model.clock import Seams
from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.fingerprint import shape
from taskflow.model.ids import id_text
from taskflow.model.printable import INDENT, one_line
from taskflow.model.record import Record, Status
from taskflow.model.verdict import Failed, Parked, Verdict
from taskflow.model.wording import WAYS_OUT
from taskflow.worker.executor import Executor

STATUSES: Final = (Status.READY, Status.RUNNING, Status.SCHEDULED, Status.HELD)  # the statuses of jobs that may still run, in reading order
MAX_PROBLEMS: Final = 10  # maximum number of problems shown for one job name
_SHOWN: Final = {"park": (YELLOW, "would park, and wait for"), "fail": (RED, "would fail:")}


class Problem(msgspec.Struct, kw_only=True):
    """A group of jobs that would not run, all for the same reason."""

    outcome: str  # "park" or "fail"
    reason: str
    example: str  # the id of one such job
    count: int = 0


class JobCheck(msgspec.Struct, kw_only=True):
    """How many jobs of one name would run with this code, be parked, or fail without being run."""

    job: str
    fits: int = 0
    parks: int = 0
    fails: int = 0
    problems: dict[str, Problem] = msgspec.field(default_factory=dict)

    def add(self, record: Record, verdict: Verdict | None) -> None:
        match verdict:
            case Parked(reason):
                self.parks += 1
                kind, outcome = reason, "park"
            case Failed(error):
                self.fails += 1
                reason = f"{error.type}: {error.message}"
                kind, outcome = shape(reason), "fail"
            case _:
                self.fits += 1
                return
        if kind in self.problems or len(self.problems) < MAX_PROBLEMS:
            self.problems.setdefault(kind, Problem(outcome=outcome, reason=reason, example=id_text(record.id))).count += 1


class QueueCoverage(msgspec.Struct, frozen=True, kw_only=True):
    """How many of a queue's waiting and running jobs were checked."""

    queue: str
    checked: int
    of: int  # the number of all such jobs


def check(arguments: argparse.Namespace) -> int:
    app = default_app()
    app.flag(broker=arguments.broker)
    import_jobs(app.registry, arguments)
    app.registry.resolve()
    return with_store(_check, arguments)


async def _check(app: App, arguments: argparse.Namespace) -> int:
    queues = [checked("queue", name) for name in arguments.queue or ()]
    admin = (await existing_broker(app)).admin
    for name in queues:
        if not await is_known_queue(admin, name):
            return Exit.NOT_FOUND
    executor = Executor(app, middleware=(), threads=None, seams=Seams())
    checks: dict[str, JobCheck] = {}
    coverage = [
        await _check_queue(admin, executor, queue, arguments.limit, checks)
        for queue in await admin.queues()
        if queue.name in (arguments.queue or (queue.name,))
    ]
    found = sorted(checks.values(), key=lambda check: (-check.fails, -check.parks, check.job))
    jobs = (msgspec.structs.asdict(check) | {"problems": list(check.problems.values())} for check in found)
    with contextlib.nullcontext() if arguments.json else contextlib.suppress(BrokenPipeError):  # the exit code matters more than the output
        show(arguments, {"jobs": jobs, "queues": coverage}, _lines(found, coverage))
    return Exit.FAILED if any(check.problems for check in found) else Exit.OK


async def _check_queue(admin: Admin, executor: Executor, queue: QueueInfo, limit: int, checks: dict[str, JobCheck]) -> QueueCoverage:
    """Check up to `limit` live jobs of a queue, adding each outcome to `checks` under the job's name. Return how many of the queue's live
    jobs were checked."""
    number, live = 0, View(queue=queue.name, statuses=STATUSES)
    async for records in pages(admin, live, min(AT_ONCE, limit)):
        for record in records[: limit - number]:
            number += 1
            checks.setdefault(record.job, JobCheck(job=record.job)).add(record, executor.foresee(_lease_of(record)))
        if number == limit:
            break
    return QueueCoverage(queue=queue.name, checked=number, of=max(number, sum(queue.counts.get(status, 0) for status in STATUSES)))


def _lease_of(record: Record) -> Lease:
    """Return a lease like the one that a worker would get for the job."""
    sent = (*Envelope.__struct_fields__, "extras")
    return Lease(
        envelope=Envelope(id=record.id, job=record.job, queue=record.queue, payload=record.payload or b"", member=record.member),
        epoch=0,
        claim=ClaimId(b"", 0, 0),
        created_at=0,
        failures=record.failures,
        unreadable=tuple(each for each in record.unreadable if each.column in sent),
    )


_COLUMNS: Final = (
    Column("FITS", lambda check: f"{check.fits:,}", is_number=True, pad=9),
    Column("PARKS", lambda check: f"{check.parks:,}", is_number=True, pad=9),
    Column("FAILS", lambda check: f"{check.fails:,}", is_number=True, pad=9),
    Column("JOB", lambda check: check.job),
)


def _lines(found: list[JobCheck], coverage: Iterable[QueueCoverage]) -> Iterator[str]:
    yield from table(_COLUMNS, found, below=_problems_of) if found else ()
    for line in _summary(found, coverage):
        yield from wrapped(line, room())


def _problems_of(check: JobCheck) -> Iterator[str]:
    for problem in check.problems.values():
        color, words = _SHOWN[problem.outcome]
        reason = f"{problem.count:,} {words} {one_line(short_reason(check.job, problem.reason))}"
        yield from (painted(line, color) for line in hanging(INDENT, reason, room()))
        yield f"{INDENT}for example {problem.example}"


def _summary(found: list[JobCheck], coverage: Iterable[QueueCoverage]) -> Iterator[str]:
    for queue in coverage:
        if queue.checked < queue.of:
            yield f"checked {queue.checked:,} of {queue.of:,} jobs in {one_line(queue.queue)}: use --limit to check more"
    total, fits = sum(check.fits + check.parks + check.fails for check in found), sum(check.fits for check in found)
    if not total:
        yield "no job is waiting or running"
    elif fits == total:
        yield painted(f"all {total:,} jobs would run with this code", GREEN)
    else:
        yield f"{total - fits:,} of {total:,} jobs would not run with this code"
        if any(check.parks for check in found):
            yield f"A parked job waits for up to 7 days: {WAYS_OUT}."
