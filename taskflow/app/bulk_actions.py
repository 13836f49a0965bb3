"""Retries, runs, cancels or purges selected jobs in batches for `operate` and the command line. Records each action in the audit log."""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, Literal, Protocol, TypedDict, TypeVar

import msgspec

from taskflow.app.job_type import JobType
from taskflow.broker.admin import Redone, View
from taskflow.broker.protocol import Broker
from taskflow.model.audit import Action
from taskflow.model.envelope import check_job_name, check_queue
from taskflow.model.errors import BrokerError, BrokerRefused
from taskflow.model.flow import MAX_MEMBERS
from taskflow.model.ids import id_text
from taskflow.model.job_schema import check_tag
from taskflow.model.printable import nearest, shown
from taskflow.model.record import ENDED, LIVE, WAITING, Record, Status, waits_at_limit
from taskflow.model.rules import seconds_of

T = TypeVar("T")


class JobSelection(TypedDict, total=False):
    """Selects the jobs that meet all of these conditions. None means "not given".

    `tag`           they have this tag
    `queue`         they are in this queue
    `job`           they call this job, given by its name or as the job itself
    `status`        they have this status, or one of several, for example "failed", `Status.FAILED` or ("failed", "cancelled")
    `error`         their last error, or the reason why they ended, contains this text, in upper or lower case
    `header`        they have this header ("name"), or the header with this value ("name=value")
    `created_before`, `ended_before`  they were sent, or ended, at least this long ago, in seconds or as a timedelta
    `poison`        if True, they failed because their workers were lost repeatedly; False sets no condition
    """

    tag: str | None
    queue: str | None
    job: str | JobType[Any] | None
    status: str | Iterable[str] | None
    error: str | None
    header: str | None
    created_before: float | timedelta | None
    ended_before: float | timedelta | None
    poison: bool | None


def view_of(method: str, which: JobSelection) -> View:
    """Convert the arguments of a method of `operate` to a view. Raises TypeError or ValueError, naming the argument."""
    for name in which:
        if name not in JobSelection.__annotations__:
            near = nearest(name, JobSelection.__annotations__)
            hint = f"; did you mean {near}=?" if near else ""
            raise TypeError(f"operate.{method}() got an unexpected argument {name}={hint}")
    poison = which.get("poison")
    if not isinstance(poison, bool | None):
        raise TypeError(f"poison={shown(poison)}: expected True or False")
    given: dict[str, Any] = {name: value for name, value in which.items() if value is not None and name not in ("status", "poison")}
    if isinstance(job := given.get("job"), JobType):
        given["job"] = job.name
    for name, check in CHECKS.items():
        if name in given and not isinstance(given[name], str):
            raise TypeError(f"{name}={shown(given[name])}: expected a str")
        if name in given:
            given[name] = check(given[name])
    for name in ("created_before", "ended_before"):
        if name in given:
            given[name] = seconds_of(name, given[name])
    return View(statuses=_statuses(which.get("status")), poison=bool(poison), **given)


def _statuses(given: str | Iterable[str] | None) -> tuple[Status, ...]:
    """Return the given statuses, sorted, or () for None. Names may be in any case. Raises TypeError or ValueError for anything else."""
    if given is None:
        return ()
    if not isinstance(given, Iterable):
        raise TypeError(f"status={shown(given)}: expected one or more statuses")
    statuses = set[Status]()
    for each in [given] if isinstance(given, str) else given:
        try:
            statuses.add(Status(each.lower()))
        except (ValueError, AttributeError):
            raise ValueError(f"status={shown(each)}: expected one of {', '.join(Status)}") from None
    if not statuses:
        raise ValueError("status= is empty: leave it out, or pass a status")
    return tuple(sorted(statuses))


def header_of(given: str) -> tuple[str, str | None]:
    """Split "name=value" into name and value. The value is None if only a name is given. Raises ValueError if there is no name."""
    name, equals, value = given.partition("=")
    if not name:
        raise ValueError(f"header {shown(given)}: expected the name of a header, or name=value")
    return name, value if equals else None


def check_error(text: str) -> str:
    """Return the text. Raises ValueError if it is empty or blank, because it would match nearly every error."""
    if not text.strip():
        raise ValueError(f"error {text!r}: expected part of an error's text")
    return text


CHECKS: Final[Mapping[str, Callable[[str], object]]] = {
    "tag": check_tag,
    "queue": check_queue,
    "job": check_job_name,
    "error": check_error,
    "header": header_of,
}

ActionName = Literal["retry", "run-now", "cancel", "purge"]

PAGE: Final = 500  # jobs per call to the store

DEFAULTS: Final[Mapping[ActionName, frozenset[Status]]] = {
    "retry": frozenset({Status.FAILED}),
    "run-now": frozenset({Status.SCHEDULED}),
    "cancel": LIVE,
    "purge": ENDED,
}
"""The statuses that each action acts on by default."""

POSSIBLE: Final[Mapping[ActionName, frozenset[Status]]] = {
    "retry": frozenset({Status.FAILED, Status.CANCELLED}),
    "run-now": frozenset({Status.SCHEDULED}),
    "cancel": LIVE,
    "purge": ENDED | WAITING,
}
"""The statuses that each action can act on."""

CHANGED, ASKED, UNKNOWN = "changed", "asked to stop", "it is unknown or no longer kept"


class ActionResult(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of an action, in numbers of jobs. With ``dry_run=True``, nothing was changed, and these are the numbers to expect.

    `changed`  how many jobs were cancelled, retried or purged, or made ready by `run_now`
    `asked`    how many running jobs were asked to stop; their workers will stop them
    `refused`  how many jobs were left as they were, by reason
    """

    changed: int = 0
    asked: int = 0
    refused: dict[str, int] = {}

    @property
    def affected(self) -> int:
        """The number of jobs that were changed or asked to stop."""
        return self.changed + self.asked

    @property
    def seen(self) -> int:
        """The number of jobs that the action examined."""
        return self.affected + sum(self.refused.values())

    def __add__(self, more: ActionResult) -> ActionResult:
        refused = Counter(self.refused) + Counter(more.refused)
        return ActionResult(changed=self.changed + more.changed, asked=self.asked + more.asked, refused=dict(refused))

    @staticmethod
    def of(answers: Iterable[str]) -> ActionResult:
        counts = Counter(answers)
        return ActionResult(changed=counts.pop(CHANGED, 0), asked=counts.pop(ASKED, 0), refused=dict(counts))


class CallBroker(Protocol):
    """A function that calls an operation of the broker, and may repeat the call until the store answers."""

    async def __call__(self, operation: Callable[[Broker], Awaitable[T]], /) -> T: ...


class CallBrokerOnce:
    """Calls an operation of the broker once, even if the store does not answer."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def __call__(self, operation: Callable[[Broker], Awaitable[T]], /) -> T:
        return await operation(self._broker)


def check_view(action: ActionName, view: View) -> None:
    """Raise ValueError if the action does not support one of the view's statuses, or the view's other conditions."""
    for status in view.statuses:
        if status not in POSSIBLE[action]:
            raise ValueError(f"{action} cannot act on {status} jobs: allowed statuses are {', '.join(sorted(POSSIBLE[action]))}")
    if action == "purge" and not view.is_checked_by_store and not ENDED.issuperset(view.statuses):
        raise ValueError("purge cannot select waiting jobs by error, header or age: cancel them first")


async def apply(call: CallBroker, action: ActionName, ids: Sequence[bytes]) -> list[str]:
    """Act on jobs by id; a purge drops only ended jobs. Return CHANGED or ASKED for each job, or the reason why it was left alone."""
    if action == "retry":
        redone = {Redone.OK: CHANGED, Redone.UNKNOWN: UNKNOWN}
        return [redone.get(answer, answer.value) for answer in await call(lambda broker: broker.admin.retry(ids))]
    records: list[Record | None] = [None] * len(ids)
    if action == "purge":
        found = await call(lambda broker: broker.admin.drop(ids))
    elif action == "cancel":
        found = await call(lambda broker: broker.cancel(ids))
    else:
        records = await call(lambda broker: broker.read(ids))
        found = await call(lambda broker: broker.admin.run_now(ids))
    return [_answer(action, *each) for each in zip(found, records, strict=True)]


async def apply_in_portions(call: CallBroker, action: ActionName, ids: Sequence[bytes]) -> AsyncIterator[list[str]]:
    """Act on jobs by id, in portions. Yield the answers so far after each portion. The portions of a retry are as large as flows, because
    each call that retries jobs of a flow examines the whole flow."""
    answers, size = list[str](), MAX_MEMBERS if action == "retry" else PAGE
    for first in range(0, len(ids), size):
        answers += await apply(call, action, ids[first : first + size])
        yield answers


def _answer(action: ActionName, status: Status | None, record: Record | None) -> str:
    """Return the answer for a job that had this status when it was purged, cancelled or run now. A status of None means that the job is
    unknown. Only run-now uses `record`, the job's record before the action."""
    if status is None:
        return UNKNOWN
    match action, status:
        case "purge", _:
            return CHANGED if status.is_ended else f"it is {status}: cancel it first"
        case "run-now", Status.SCHEDULED:
            return "it waits for a limit, which run-now doesn't skip" if record is not None and waits_at_limit(record) else CHANGED
        case "run-now", Status.READY | Status.RUNNING:
            return f"it is already {status}"
        case "run-now", Status.HELD:
            waits_for_key = record is not None and record.behind is not None
            return "it waits for the running job with its key" if waits_for_key else "it waits for other jobs"
        case _, Status.CANCELLED:
            return "it was already cancelled"
    if status.is_ended:
        return f"it has already {status}"
    return ASKED if status is Status.RUNNING else CHANGED


def foresee(action: ActionName, record: Record | None, *, by_id: bool) -> str:
    """Return the answer that the action would give for the job, judging by its record. `by_id` is True if the job is named by its id."""
    if record is None:
        return UNKNOWN
    if action in ("cancel", "run-now") or (action == "purge" and by_id):
        return _answer(action, record.status, record)
    if record.status in POSSIBLE[action]:
        return CHANGED
    return "it is running" if action == "purge" else (Redone.SUCCEEDED if record.status.is_ended else Redone.LIVE).value


async def pages(call: CallBroker, view: View) -> AsyncIterator[list[Record]]:
    """Yield the records of matching jobs, page by page. Acting on these jobs does not shift later pages."""
    cursor: str | None = None
    while True:
        page = await call(lambda broker, cursor=cursor: broker.admin.page(view, cursor=cursor, limit=PAGE))  # type: ignore[misc]
        if page.records:
            yield page.records
        if (cursor := page.cursor) is None:
            return


async def count(call: CallBroker, view: View) -> int:
    """Count the matching jobs. If the view has only live statuses and perhaps a queue, this adds up the queues' counts. Otherwise it reads
    the jobs, because the counts of ended jobs include those that are no longer kept."""
    statuses = view.statuses
    if statuses and LIVE.issuperset(statuses) and view == View(queue=view.queue, statuses=statuses):
        queues = [queue for queue in await call(lambda broker: broker.admin.queues()) if view.queue in (None, queue.name)]
        return sum(queue.counts[status] for queue in queues for status in statuses)
    return sum([len(records) async for records in pages(call, view)])


async def act(call: CallBroker, action: ActionName, view: View) -> AsyncIterator[ActionResult]:
    """Act on all matching jobs, and yield the totals so far after each batch."""
    done = ActionResult()
    if action == "purge":
        ended, waiting = (_narrowed(view, statuses) for statuses in (ENDED, WAITING))
        left = await count(call, waiting) if waiting is not None else 0  # jobs added in the meantime can't keep the purge running
        if ended is not None:
            async for records in pages(call, ended):
                found = await apply(call, action, [record.id for record in records])
                done += ActionResult(changed=found.count(CHANGED))  # a job that was retried in the meantime is left alone
                yield done
        while waiting is not None and left > 0:
            most = min(PAGE, left)
            dropped = await call(lambda broker, most=most: broker.admin.purge(waiting, limit=most))  # type: ignore[misc]
            if not dropped:
                break
            left -= dropped
            done += ActionResult(changed=dropped)
            yield done
        return
    async for ids in _batches(call, action, view):
        done += ActionResult.of(await apply(call, action, ids) if ids else ())
        yield done


async def _batches(call: CallBroker, action: ActionName, view: View) -> AsyncIterator[list[bytes]]:
    """Yield the ids of the matching jobs in batches. For a retry, jobs in flows come last, and those of one flow are in the same batch."""
    acted, by_flow, batch = set[bytes](), defaultdict[bytes, list[bytes]](list), list[bytes]()
    async for records in pages(call, view):
        for record in records:
            if action == "retry" and record.member is not None:
                by_flow[record.member.flow].append(record.id)
            elif record.id not in acted:
                batch.append(record.id)
        if action == "run-now":
            acted.update(batch)  # a job that ran in the meantime, and was scheduled again, is on a later page too
        yield batch
        batch = []
    for ids in by_flow.values():
        batch += ids
        if len(batch) >= PAGE:
            yield batch
            batch = []
    yield batch


def _narrowed(view: View, statuses: Collection[Status]) -> View | None:
    """Narrow the view to these statuses. Return None if it includes none of them."""
    asked = tuple(status for status in view.statuses or Status if status in statuses)
    return msgspec.structs.replace(view, statuses=asked) if asked else None


log: Final = logging.getLogger("taskflow.operate")

STOPPED: Final = "stopped"
"""A cancellation message that begins with this word names who stopped the action, so the audit log keeps it."""

RECORD_TIMEOUT: Final = 5.0
"""The maximum time for adding an action to the audit log, in seconds."""


class ActionProgress(msgspec.Struct):
    """The progress of an action, updated by the code that carries it out. `stopped` says why it ended early, or is empty."""

    affected: int = 0
    stopped: str = ""


def this_operator() -> str:
    """Return this process's user and machine, such as "ada@web-1"."""
    from getpass import getuser

    try:
        user = getuser()
    except (OSError, KeyError, ImportError):  # the user has no name, as in many containers
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


@asynccontextmanager
async def recorded(
    call: CallBroker, kind: str, *, by: str | None, reason: str, names: Sequence[str] = (), which: Mapping[str, str] | None = None
) -> AsyncIterator[ActionProgress]:
    """Add the action to the audit log when the `with` block ends, if it affected anything, or may have done so before it was interrupted.
    The block must keep the yielded progress up to date."""
    doing = ActionProgress()
    try:
        yield doing
    except BaseException as error:
        if not isinstance(error, Exception):
            doing.stopped = why if (why := str(error)).startswith(STOPPED) else "interrupted"
        elif isinstance(error, BrokerError) and not isinstance(error, BrokerRefused):  # the failed call may have taken effect
            doing.stopped = f"{type(error).__name__}: {error}"
        raise
    finally:
        if doing.affected or doing.stopped:
            action = Action(
                id=os.urandom(16),
                by=by or this_operator(),
                kind=kind,
                names=tuple(names),
                named=len(names),
                which=which or {},
                affected=doing.affected,
                stopped=doing.stopped,
                reason=reason,
            )
            await _record(call, action)


async def amend_jobs(call: CallBroker, kind: Literal["pause", "resume"], names: Sequence[str], *, by: str | None, reason: str) -> list[str]:
    """Pause or resume the named jobs, record the action in the audit log, and return the names of the jobs that changed. `resume` also
    releases, in batches, the calls that a pause held back, even if the pause had already ended."""
    paused = await call(lambda broker: broker.admin.paused_jobs())
    changing = [name for name in names if (name in paused) != (kind == "pause")]
    async with recorded(call, f"jobs.{kind}", by=by, reason=reason, names=changing) as doing:
        for name in names if kind == "resume" else changing:
            if kind == "pause":
                await call(lambda broker, name=name: broker.admin.pause_job(name))  # type: ignore[misc]
            while kind == "resume" and await call(lambda broker, name=name: broker.admin.resume_job(name)):  # type: ignore[misc]
                pass
            doing.affected += name in changing
    return changing


async def perform(
    call: CallBroker, action: ActionName, ids: Sequence[bytes], view: View, *, by: str | None, reason: str
) -> AsyncIterator[ActionResult]:
    """Act on the jobs with these ids, or on all that match the view if there are no ids. Yield the totals so far after each batch, and
    record the action in the audit log."""
    result = ActionResult()
    target: dict[str, Any] = {"names": [*map(id_text, ids)]} if ids else {"which": selection(view)}
    async with recorded(call, action, by=by, reason=reason, **target) as doing:
        async for answers in apply_in_portions(call, action, ids):
            result = ActionResult.of(answers)
            doing.affected = result.affected
            yield result
        if not ids:
            async for result in act(call, action, view):
                doing.affected = result.affected
                yield result


async def _record(call: CallBroker, action: Action) -> None:
    """Add the action to the log, even in a task that is being cancelled. If that fails, only log an error: the action is already done."""
    import anyio

    async def add() -> None:
        try:
            with anyio.fail_after(RECORD_TIMEOUT, shield=True):
                await call(lambda broker: broker.admin.record_action(action))
        except (BrokerError, TimeoutError) as error:
            why = error or f"the store did not answer within {RECORD_TIMEOUT:g} s"
            log.error("could not record an action in the audit log (%s, which affected %s): %s", action.kind, f"{action.affected:,}", why)

    try:
        await add()
    except anyio.get_cancelled_exc_class():  # asyncio's own cancel() ignores the shield
        await add()  # a store does not add an action that it already has
        raise


def selection(view: View) -> dict[str, str]:
    """Return the view's conditions as texts by name, for the audit log. Conditions that are not set are left out."""
    conditions = msgspec.structs.asdict(view) | {
        "statuses": None,
        "status": ", ".join(view.statuses),
        "header": None if view.header is None else "=".join(part for part in view.header if part is not None),
        "poison": "yes" if view.poison else None,
    }
    return {
        name: f"{value:g} s" if isinstance(value, float) else str(value) for name, value in conditions.items() if value not in (None, "")
    }


def check_operator(by: object, reason: object) -> None:
    """Raise TypeError if `reason` is not text, or `by` is neither text nor None."""
    for name, value in (("by", by), ("reason", reason)):
        if not isinstance(value, str) and not (name == "by" and value is None):
            raise TypeError(f"{name}={shown(value)}: expected a str")
