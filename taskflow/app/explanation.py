"""Explains why a job is in its present state: reads the facts that a store knows, and derives the reasons from them."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from taskflow.broker.admin import Admin, LimitInfo, QueueInfo, View
from taskflow.broker.paging import first
from taskflow.broker.protocol import Broker
from taskflow.model import wording
from taskflow.model.ids import id_text
from taskflow.model.printable import moment, span
from taskflow.model.record import Record, Status, is_parked, waits_at_limit
from taskflow.model.schedule import SCHEDULE
from taskflow.model.session import SessionRecord
from taskflow.model.transitions import Event
from taskflow.model.wording import POISON

SAMPLE_TIME: Final = 1.0  # seconds for which a command measures the rate of claims from a queue
MAX_POSITIONS: Final = 1_000  # the maximum number of jobs counted ahead of a ready job
MAX_SCHEDULED: Final = 100  # the maximum number of scheduled jobs that are compared with what workers know
POSITIONS_AT_ONCE: Final = 200
MAX_HOLDERS: Final = 3  # the maximum number of jobs that are named as holders of a limit's slots
_CHANGE: Final = "`taskflow limits set` changes the number"
MAX_WAITING: Final = 1_000  # a store counts at most this many jobs that wait at a limit


class Reason(msgspec.Struct, frozen=True):
    """A reason for a job's state. `cure` says what to do about it, or is empty."""

    text: str
    cure: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a job's queue, the jobs ahead of it and the workers, from which `reasons` derives the reasons for the job's state."""

    now: datetime  # by the store's clock, as far as it is known
    is_paused: bool = False
    counts: Mapping[Status, int] = {}  # of the job's queue
    positions: Mapping[bytes, int] = {}  # how many jobs run before each of the queue's first ready jobs, by job id; empty if not counted
    workers: Sequence[SessionRecord] = ()  # the sessions of all workers, even of those that no longer send heartbeats
    rate: float | None = None  # claims per second from the job's queue; None if not measured


async def facts_of(
    admin: Admin, record: Record, now: datetime, *, sample_time: float = SAMPLE_TIME, max_positions: int = MAX_POSITIONS
) -> Facts:
    """Query the store for the facts that matter in the job's state. If the job is ready, and so are others in its queue, read the first
    `max_positions` of them and, unless the queue is paused, measure the rate of claims for `sample_time` seconds (0: no measurement)."""
    if record.status in (Status.SUCCEEDED, Status.FAILED):
        return Facts(now=now)
    queues, workers = await asyncio.gather(admin.queues(), admin.workers())
    queue = next((queue for queue in queues if queue.name == record.queue), None)
    counts = {} if queue is None else queue.counts
    is_paused = queue is not None and queue.is_paused
    rate, positions = None, dict[bytes, int]()
    if record.status is Status.READY and counts.get(Status.READY, 0) > 1:
        ready = await first(admin, View(statuses=(Status.READY,), queue=record.queue), max_positions, POSITIONS_AT_ONCE)
        positions = {other.id: position for position, other in enumerate(ready)}
    if positions and not is_paused and sample_time:
        begun = time.monotonic()
        before = await _claims(admin, record.queue)
        await asyncio.sleep(sample_time)
        rate = (await _claims(admin, record.queue) - before) / (time.monotonic() - begun)
    return Facts(now=now, is_paused=is_paused, counts=counts, positions=positions, workers=workers, rate=rate)


async def unknown_jobs(admin: Admin, queues: Sequence[QueueInfo], known: Sequence[Sequence[str]]) -> dict[str, int]:
    """Count, by name, the parked jobs (which no worker could run) that no running worker knows. `known` has each worker's jobs; if a worker
    names none, nothing is counted. Parked jobs are due again within minutes, so only the next `MAX_SCHEDULED` scheduled jobs are read."""
    if not known or not all(known) or not any(queue.counts.get(Status.SCHEDULED) for queue in queues):
        return {}
    page = await admin.page(View(statuses=(Status.SCHEDULED,)), limit=MAX_SCHEDULED)
    return Counter(record.job for record in page.records if is_parked(record) and not any(record.job in jobs for jobs in known))


class OwnFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that concern a single job: related jobs of its flow, and its limits.

    `awaited`  some of the jobs that the job waits for; failed and cancelled ones come first
    `cause`    the job whose failure cancelled it, or None
    `limits`   its limits, if it waits for one of them; otherwise empty
    """

    awaited: Sequence[Record] = ()
    cause: Record | None = None
    limits: Sequence[LimitInfo] = ()


async def own_facts_of(broker: Broker, record: Record) -> OwnFacts:
    """Read a job's `OwnFacts`. Jobs that it waits for are found only among the `MAX_POSITIONS` jobs before it in its flow."""
    if waits_at_limit(record):
        return OwnFacts(limits=await broker.admin.limits(job=record.id))
    if record.member is None:
        return OwnFacts()
    if record.status is Status.HELD:
        first = max(0, record.member.number - MAX_POSITIONS)
        before = await broker.admin.flow(record.member.flow, first=first, limit=record.member.number - first)
        others = [other for other in before if record.id in other.joins and other.status is not Status.SUCCEEDED]
        live = [other for other in others if not other.status.is_ended]
        if len(live) >= record.awaits:  # the job collects failures, or no job has failed
            return OwnFacts(awaited=live)
        return OwnFacts(awaited=sorted(others, key=lambda other: not other.status.is_ended))
    if record.status is Status.CANCELLED and record.cancelled_by is not None:
        [cause] = await broker.read([record.cancelled_by])
        return OwnFacts(cause=cause)
    return OwnFacts()


async def _claims(admin: Admin, queue: str) -> int:
    return (await admin.metrics()).totals.get(queue, {}).get(Event.CLAIM, 0)


def reasons(record: Record, facts: Facts, own: OwnFacts | None = None) -> list[Reason]:
    """Return the reasons for the job's present state. The first one is the cause; the others may matter once it's resolved."""
    own = own or OwnFacts()
    if waits_at_limit(record):
        found = [*_at_limit(record, own.limits, facts)]
    else:
        found = list(_OF_STATUS[record.status](record, facts) if record.member is None else _in_flow(record, facts, own))
    if record.unreadable:
        columns = ", ".join(field.column for field in record.unreadable)
        found.insert(0, Reason(f"stored values cannot be read: {columns}", f"`taskflow jobs {_id(record)}` shows their bytes"))
    return found


def short_reason(job: str, reason: str) -> str:
    """Shorten a reason: leave out its cure and the job's name, which are shown next to it, and reword problems with arguments."""
    reason = reason.removesuffix(f"; {wording.WAYS_OUT}").removesuffix(f" (in a call of {job})")
    reason = re.sub(r"(\S+): is a required argument and was not given", r"the argument `\1` is required, and was not given", reason)
    return re.sub(r"(\S+): the function has no such argument", r"the function has no argument `\1`", reason)


def _held(record: Record, facts: Facts) -> Iterator[Reason]:
    if record.waiting_for:
        is_arriving = record.waiting_for == wording.ARRIVES
        cure = "start one with `taskflow worker MODULE` if none is running" if is_arriving else "wait for that job to end, or cancel it"
        yield Reason(f"it waits for {record.waiting_for}", cure)
    else:
        yield Reason("it waits for other jobs to end", "see `taskflow jobs --status running`")


def _in_flow(record: Record, facts: Facts, flow: OwnFacts) -> Iterator[Reason]:
    """Yield the reasons for a job in a flow: what it waits for, what cancelled it, or what its failure cancelled."""
    assert record.member is not None
    show, again = f"`taskflow flows {id_text(record.member.flow)}`", f"`taskflow retry --flow {id_text(record.member.flow)}`"
    if record.status is Status.HELD and record.awaits:
        jobs = f"{record.awaits:,} jobs of its flow" if record.awaits > 1 else "a job of its flow"
        such_as = "".join(f", {'such as ' if record.awaits > 1 else ''}{each.job} ({each.status})" for each in flow.awaited[:1])
        yield Reason(f"it waits for {jobs}{such_as}", f"{show} shows them all")
    elif record.status is Status.CANCELLED and record.cancelled_by == record.member.flow:
        yield Reason("its flow was cancelled", f"{again} still runs the jobs that have not succeeded")
    elif record.status is Status.CANCELLED and record.cancelled_by is not None:
        restores = f"`taskflow retry {id_text(record.cancelled_by)}` runs that job again, and restores this one"
        error = None if flow.cause is None else flow.cause.last_error
        why = "" if flow.cause is None else f": {flow.cause.job}{'' if error is None else f': {error.type}: {error.message}'}"
        yield Reason(f"{record.reason}{why}", restores)
    else:
        yield from _OF_STATUS[record.status](record, facts)
        if record.status in (Status.FAILED, Status.CANCELLED) and record.member.first < record.member.last:
            yield Reason("the jobs of its flow that had not begun were cancelled with it", f"retrying it restores them; {show} shows them")


def _at_limit(record: Record, limits: Sequence[LimitInfo], facts: Facts) -> Iterator[Reason]:
    """Yield the reasons why a job is waiting for a limit: who holds the slots and how many jobs are waiting, or when the rate will let it
    start. These include any other full limit, and a pause of the queue."""
    is_rate = record.due_at > facts.now
    own = [each for each in limits if wording.waits_at_gate(each.limit, each.key) == record.waiting_for]
    limit = next((each for each in own if (each.per is not None) == is_rate and (is_rate or each.waiting)), None)
    if limit is None and any(each.per is not None for each in own):
        due = f"{record.waiting_for} lets it start"
        is_served = any(worker.is_alive for worker in facts.workers)
        yield Reason(f"{due} at the next maintenance", "check again") if is_served else _no_worker(due)
    elif limit is None:
        yield Reason(f"it waits for a slot of {record.waiting_for}", "a run that ends frees its slot; see `taskflow jobs --status running`")
    elif limit.per is not None:
        at = f"{limit.n:,} in {span(limit.per)}"
        later = f"; a job that is sent now starts in {span(limit.opens_in)}" if limit.opens_in else ""
        starts = f"it starts {_after(record.due_at, facts.now)}"
        if record.due_at < facts.now + timedelta(seconds=limit.closed_for):
            starts = f"a run that was refused has closed it, and it opens in {span(limit.closed_for)}"
        yield Reason(f"{record.waiting_for} allows {at}: {starts}{later}", f"wait; {_CHANGE}, and gives the waiting jobs new times at once")
    else:
        number = next((number for number, job in enumerate(limit.next, 1) if job.id == _id(record)), None)
        waiting = f"{limit.waiting:,}{' or more' if limit.waiting == MAX_WAITING else ''}"
        place = f"{waiting} jobs wait" if number is None else f"it is number {number} of {waiting} that wait"
        yield Reason(f"it waits for a slot of {record.waiting_for}: {_taken(limit)}; {place}", _opening(limit))
    for other in limits:
        if other is not limit and other.per is None and other.running >= other.n:
            yield Reason(f"{wording.waits_at_gate(other.limit, other.key)} is full, too: {_taken(other)}", _opening(other))
    if facts.is_paused:
        yield _paused(record, ", so no worker takes it when it is ready")


def _no_worker(state: str) -> Reason:
    return Reason(f"{state}, but no worker is running to make it ready", "start one with `taskflow worker MODULE`")


def _opening(limit: LimitInfo) -> str:
    if limit.n == 0:
        return f"none starts while the number is 0; {_CHANGE}"
    if limit.running > limit.n:  # the number was lowered
        return f"it is free when {limit.running - limit.n + 1:,} of their runs have ended; {_CHANGE}"
    return f"a run that ends frees its slot; {_CHANGE}"


def _taken(limit: LimitInfo) -> str:
    """Return a phrase that says how many slots are taken and names some of the jobs that hold them."""
    shown = [f"{job.id} ({'running' if job.is_running else 'ready'})" for job in limit.holders[:MAX_HOLDERS]]
    more = [f"{limit.running - len(shown):,} more"] * (limit.running > len(shown) > 0)
    held_by = f" by {', '.join([*shown, *more])}" if shown else ""
    if limit.n == 0:
        still = f"; {limit.running:,} {'is' if limit.running == 1 else 'are'} still held{held_by}" if limit.running else ""
        return f"its number is 0{still}"
    return f"{limit.running:,} of {limit.n:,} {'is' if limit.running == 1 else 'are'} taken{held_by}"


def _scheduled(record: Record, facts: Facts) -> Iterator[Reason]:
    if record.waiting_for == wording.waits_for_resume(record.queue):
        yield _paused(record, ", and its jobs give back their slots until it is resumed")
        return
    wait = _after(record.due_at, facts.now)
    if record.due_at <= facts.now and not any(worker.is_alive for worker in facts.workers):
        yield _no_worker("it is due")
    if record.waiting_for == wording.job_paused(record.job):
        yield Reason(f"job {record.job} is paused", f"`taskflow resume --job {record.job}` ends the pause")
    elif record.waiting_for and is_parked(record):
        yield Reason(
            f"no worker could run it: it waits for {short_reason(record.job, record.waiting_for)}, and is tried again {wait}",
            f"deploy the code that sent it, or `taskflow cancel {_id(record)}` if that code was removed",
        )
    elif record.waiting_for:
        yield Reason(f"it waits for {record.waiting_for}; it is ready again {wait}", "find out why its workers stop before it ends")
    elif record.crashes:
        yield Reason(
            f"its worker was lost {_times(record.crashes)} while it ran; it is ready again {wait}",
            f"`taskflow jobs {_id(record)}` shows the causes",
        )
    elif record.failures:
        error = record.errors[-1] if record.errors else None
        why = f": {error.type}: {error.message}" if error is not None else ""
        yield Reason(
            f"attempt {record.failures} of {record.max_attempts} failed{why}; the next one starts {wait}",
            "fix the cause; the retry is automatic",
        )
    elif record.snoozes:
        yield Reason(f"it has snoozed {_times(record.snoozes)}; it is ready again {wait}")
    elif SCHEDULE in record.headers:
        yield Reason(f"schedule {record.headers[SCHEDULE]} added it for later; it is ready {wait}")
    else:
        yield Reason(f"it was sent for later; it is ready {wait}")
    if facts.is_paused:
        yield _paused(record, ", so no worker takes it when it is ready")


def _ready(record: Record, facts: Facts) -> Iterator[Reason]:
    known = [worker for worker in facts.workers if not worker.is_dying]
    taking = [worker for worker in known if not worker.session.queues or record.queue in worker.session.queues]
    knowing = [worker for worker in taking if not worker.session.jobs or record.job in worker.session.jobs]
    alive = [worker for worker in knowing if worker.is_alive]
    if record.waiting_for:  # a poison job whose follow-up has yet to be sent
        yield Reason(f"it waits for {record.waiting_for}")
    if facts.is_paused:
        yield _paused(record)
    if not known:
        yield Reason("no worker is running", "start one with `taskflow worker MODULE`")
    elif not taking:
        yield Reason(f"{_none_of(known, 'take')} queue {record.queue}", f"start one with `--queues {record.queue}`")
    elif not knowing:
        yield Reason(f"{_none_of(taking, 'know')} {record.job}, among those that take queue {record.queue}", "start one with its module")
    elif not alive:
        seconds = min(worker.seconds_since_beat for worker in knowing)
        yield Reason(
            f"no heartbeat for {span(seconds)} from {_workers(knowing)}, which could run it",
            "start another one, or check its log if it should be running",
        )
    else:
        slots, busy = sum(worker.session.concurrency for worker in alive), sum(worker.busy for worker in alive)
        if slots and busy >= slots and not facts.is_paused:
            slots_of = f"all {slots} slots" if slots > 1 else "the only slot"
            yield Reason(f"{slots_of} of {_workers(alive)} {'are' if slots > 1 else 'is'} busy", "wait, or start more workers")
        yield from _behind(record, facts)


def _paused(record: Record, consequence: str = "") -> Reason:
    return Reason(f"queue {record.queue} is paused{consequence}", f"`taskflow resume {record.queue}` ends the pause")


def _behind(record: Record, facts: Facts) -> Iterator[Reason]:
    position = facts.positions.get(record.id)
    ahead = position if position is not None else len(facts.positions) or facts.counts.get(Status.READY, 0) - 1
    since = f"it has been ready for {span((facts.now - record.due_at).total_seconds())}"
    behind = f"{since}, behind {'at least ' if position is None else ''}{ahead:,} other{'s' if ahead > 1 else ''} in queue {record.queue}"
    if record.fair is not None:
        behind += ", in which tenants take turns"
    if facts.is_paused:  # the job's position does not change, however many workers there are
        if ahead > 0:
            yield Reason(behind)
        return
    if ahead <= 0:
        next_one = f"is the next one in queue {record.queue}" if position == 0 else "nothing is known to block it"
        yield Reason(f"{since}, and {next_one}", "check again: a worker is about to take it")
        return
    about = ""
    if facts.rate is not None:
        about = f"; at the current rate its turn comes in about {span(ahead / facts.rate)}" if facts.rate else "; no job is being claimed"
    yield Reason(f"{behind}{about}", "wait, start more workers, or send it with a higher priority")


def _running(record: Record, facts: Facts) -> Iterator[Reason]:
    since = record.started_at or record.claimed_at or facts.now
    lasted = span((facts.now - since).total_seconds())
    if record.cancel_requested:
        yield Reason("it was asked to stop, but has not stopped yet", "code in a thread must check `ctx.cancelled`")
    silent = [w for w in facts.workers if w.session.name == record.worker and w.seconds_since_beat > w.session.ttl / 2]
    if silent:
        is_lone = not any(worker.is_alive for worker in facts.workers if worker.session.name != record.worker)
        yield Reason(
            f"its worker {record.worker} has sent no heartbeat for {span(silent[0].seconds_since_beat)}",
            f"after {span(silent[0].session.ttl)} another worker takes the job{'; none is running: start one' if is_lone else ''}",
        )
    if record.started_at is None:
        yield Reason(f"worker {record.worker} took it {lasted} ago, but has not reported its start yet")
    else:
        yield Reason(f"it has been running on {record.worker} for {lasted}, attempt {record.attempt} of {record.max_attempts}")
    if record.progress is not None:
        yield Reason(f"its progress is {record.progress.fraction:.0%}{f': {record.progress.note}' if record.progress.note else ''}")


def _failed(record: Record, facts: Facts) -> Iterator[Reason]:
    again = f"when the cause is fixed: `taskflow retry {_id(record)}`"
    error = record.last_error
    if (record.reason or "").startswith(POISON):
        yield Reason(f"{record.reason}", f"find out what kills its workers; {again}")
    elif error is None:
        yield Reason(f"it was discarded: {record.reason}", again)
    elif record.failures < record.max_attempts:
        yield Reason(f"{error.type}: {error.message}; this error is not retried", again)
    else:
        yield Reason(f"its last attempt, {error.attempt} of {record.max_attempts}, failed: {error.type}: {error.message}", again)


def _cancelled(record: Record, facts: Facts) -> Iterator[Reason]:
    cure = f"`taskflow retry {_id(record)}` runs it anyway"
    if record.reason == wording.EXPIRED and facts.is_paused:
        pause = _paused(record)
        yield Reason(f"it expired before a worker started it; {pause.text}", f"{pause.cure}; then {cure}")
    elif record.reason == wording.EXPIRED:
        yield Reason("it expired: no worker started it in time", f"start more workers, or send with a longer `expires`; {cure}")
    elif (record.reason or "").startswith(wording.REPLACED_BY.partition("%")[0]):
        yield Reason(f"it was {record.reason}, which has the same key", "see that job")
    else:
        why = "" if record.reason in (None, "", wording.CANCELLED) else f": {record.reason}"
        yield Reason(f"it was cancelled{why}", cure)


def _succeeded(record: Record, facts: Facts) -> Iterator[Reason]:
    yield Reason("it succeeded" if record.ended_at is None else f"it succeeded on {moment(record.ended_at.replace(microsecond=0))}")


def _after(at: datetime, now: datetime) -> str:
    seconds = (at - now).total_seconds()
    return f"in {span(seconds)}" if seconds > 0 else "at the next maintenance"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _workers(workers: Sequence[SessionRecord]) -> str:
    return f"the {len(workers)} workers" if len(workers) > 1 else f"worker {workers[0].session.name}"


def _none_of(workers: Sequence[SessionRecord], verb: str) -> str:
    return f"none of {_workers(workers)} {verb}s" if len(workers) > 1 else f"{_workers(workers)} does not {verb}"


def _id(record: Record) -> str:
    return id_text(record.id)


_OF_STATUS: Final = {
    Status.HELD: _held,
    Status.SCHEDULED: _scheduled,
    Status.READY: _ready,
    Status.RUNNING: _running,
    Status.SUCCEEDED: _succeeded,
    Status.FAILED: _failed,
    Status.CANCELLED: _cancelled,
}
