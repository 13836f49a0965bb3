"""Defines `schedules`, which stores, changes and shows schedules at run time."""

from __future__ import annotations

import builtins
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import datetime, timedelta, tzinfo
from itertools import islice
from typing import Any, Final

import msgspec

from taskflow.app.app import App, default_app
from taskflow.app.bulk_actions import ActionProgress, check_operator, recorded
from taskflow.app.declared_schedules import NOT_RAISED, Cron, Every, check_schedule_name, is_schedule_name, plan_of, terms_of
from taskflow.app.flow import Call, Composed
from taskflow.app.handle import JobHandle
from taskflow.app.loop_client import MAX_BYTES, LoopClient
from taskflow.app.middleware import stamped_envelopes
from taskflow.broker.protocol import Added, Refused
from taskflow.model.clock import instant_of, microseconds_of
from taskflow.model.envelope import Envelope
from taskflow.model.errors import ConfigurationError, DecodeError, ScheduleConflict, UnknownSchedule
from taskflow.model.ids import id_text
from taskflow.model.printable import shown
from taskflow.model.schedule import Amendment, Firing, ScheduleRecord
from taskflow.model.schedule_plan import CatchUp, Overlap, SchedulePlan
from taskflow.model.timetable import OwnTimes, Timetable, zone_of

MAX_JOBS_PER_CALL: Final = 1_000
"""The maximum number of jobs that `backfill` sends in one call to the store, and the default of its `limit`."""


MAX_NAMED: Final = 5
"""The maximum number of different jobs that `ScheduleInfo.flow` names."""


class ScheduleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A stored schedule. Times are aware datetimes in the schedule's time zone.

    `timetable`     when it fires, for example "0 9 * * MON-FRI Europe/Paris" or "every 30 s"
    `job`           the job that it sends, or the last job of its flow
    `flow`          the jobs of the flow that it sends, for example "11 jobs: 10 count, total"; None if it sends a single job
    `next_at`       the next time to fire; None if the schedule is paused, asleep or over, or if no worker has computed the time yet
    `last_at`       the last scheduled time that fired
    `last_id`       the id of the job that it added last, or of the last job of that flow
    `lag`           how late it last fired, in seconds, not counting the jitter; None if it has not fired yet
    `fired`         how many jobs or flows it has added
    `skipped`       how many scheduled times added no job or flow, because an earlier one was still live
    `missed`        how many scheduled times did not fire because it was too late
    `is_declared`   True if it was declared by a decorator, False if it was stored by `schedules.put`
    `declarers`     the running workers that declare it, as "host:pid", youngest first; the first one's definition is in force
    `asleep_since`  when the last worker that declared it stopped; None if a running worker declares it, or `put` stored it
    `problem`       why its definition cannot be read; None if it can be read
    """

    name: str
    timetable: str
    job: str
    queue: str
    next_at: datetime | None
    last_at: datetime | None
    last_id: str | None
    lag: float | None
    fired: int
    skipped: int
    missed: int
    overlap: str
    catch_up: str
    max_delay: float | None
    jitter: float
    is_paused: bool
    is_declared: bool
    declarers: tuple[str, ...]
    asleep_since: datetime | None
    flow: str | None = None
    problem: str | None = None


class Schedules:
    """Stores, changes and shows schedules. All methods are async. Code without an event loop calls ``run_sync(schedules.put(...))``.

    The methods raise BrokerUnavailable if the store does not answer in time. `pause`, `resume`, `remove`, `trigger` and `backfill`
    raise UnknownSchedule if there is no schedule with the name.

    Calls by an application aren't recorded. With `by` (who acts) or `reason`, the store's audit log records the call as an operator's
    action.
    """

    async def put(
        self,
        name: str,
        call: Call[Any] | Composed[Any],
        schedule: Cron | Every,
        *,
        overlap: Overlap = "allow",
        catch_up: CatchUp = "latest",
        max_delay: float | timedelta | None = None,
        by: str | None = None,
        reason: str = "",
    ) -> None:
        """Store a schedule under a name, replacing the one that `put` stored before. Putting an identical schedule again changes nothing.

        `call`      a call made by ``.bind(...)``, with its arguments and options, or a flow or group. At each time, all jobs of a flow are
                    added, or none is. A flow can have at most 1,000 jobs, and its definition at most 1 MiB
        `schedule`  when it fires
        `overlap`, `catch_up`, `max_delay`   as in `job`. For a flow, `overlap` can be "allow" or "skip", which adds no flow until all
                    jobs of the last one have ended

        Raises TypeError or ValueError for an invalid argument, and for a call with ``on_conflict="raise"``: a worker sends it, so
        there is no caller to raise the error to. Raises ScheduleConflict if a decorator has declared a schedule with this name.
        """
        if not isinstance(call, Call | Composed):
            raise TypeError(f"schedules.put() got {shown(call)}: expected a call made by .bind(...), or a flow")
        if not isinstance(schedule, Cron | Every):
            raise TypeError(f"schedules.put() got {shown(schedule)}: expected Cron(...) or Every(...), which can be stored")
        if schedule.args or schedule.kwargs or schedule.options or schedule.name:
            raise ValueError("schedules.put() takes the name, the arguments and the options from its own arguments: leave them out of Cron")
        if isinstance(call, Call) and call.raises_on_conflict:
            raise ValueError(f"schedules.put(): {NOT_RAISED}")
        envelopes = [call.envelope] if isinstance(call, Call) else call._templates()
        if not envelopes:
            raise ValueError(f"schedules.put() got {call!r}: a schedule sends at least one job")
        plan = plan_of(schedule.times, envelopes, jitter=schedule.jitter, terms=terms_of(overlap, catch_up, max_delay))
        definition = plan.to_definition(check_schedule_name(name))
        async with _recorded("put", name, by, reason) as doing:
            [is_stored] = await _client().call(lambda broker: broker.define([definition]))
            if not is_stored:
                raise ScheduleConflict(
                    f"schedule {name!r} is declared by a job's decorator: change it there, or put this one under another name"
                )
            doing.affected = 1

    async def get(self, name: str) -> ScheduleInfo | None:
        """Return the schedule with this name, or None if there is none."""
        found = await _records([name])
        return schedule_info_of(found[0]) if found else None

    async def list(self) -> builtins.list[ScheduleInfo]:
        """Return all schedules, sorted by name."""
        return [schedule_info_of(record) for record in await _records(None)]

    async def pause(self, name: str, *, by: str | None = None, reason: str = "") -> None:
        """Stop a schedule from firing until `resume` is called. Jobs that it has already added are not affected."""
        await self._amend(name, Amendment.PAUSE, by, reason)

    async def resume(self, name: str, *, by: str | None = None, reason: str = "") -> None:
        """Let a paused schedule fire again. It does not fire for times that passed during the pause."""
        await self._amend(name, Amendment.RESUME, by, reason)

    async def remove(self, name: str, *, by: str | None = None, reason: str = "") -> None:
        """Remove a schedule. Jobs that it has already added are not affected. Raises ScheduleConflict if a running worker declares it."""
        await self._amend(name, Amendment.REMOVE, by, reason)

    async def trigger(self, name: str, *, by: str | None = None, reason: str = "") -> JobHandle[Any]:
        """Add a job or flow for the schedule now, even if it is paused, and return the handle of the job, or of the flow's last job. This
        does not affect when the schedule fires next. If `overlap` rules out another job, return the handle of a live one, with `is_new`
        False."""
        app = default_app()
        plan = await stored_plan(name)
        envelopes = plan.envelopes_for(name, int.from_bytes(app.new_id()[:6], "big") * 1_000, new_id=app.new_id)
        envelopes = tuple(stamped_envelopes(app.settings.middleware, app.registry.get, envelopes))
        terms: dict[str, Any] = {"is_alone": plan.overlap != "allow", "is_extra": True}
        firing = Firing(name=name, digest=b"", expected=None, next_at=None, offer_at=None, envelopes=envelopes, **terms)
        async with _recorded("trigger", name, by, reason) as doing:
            [answer] = await app.client().call(lambda broker: broker.fire([firing]))
            if answer is None:
                raise _unknown(name)
            is_new = isinstance(answer, Added) or answer.existing == answer.id  # a repeated call finds its own job
            doing.affected = int(is_new)
        job_id = answer.id if isinstance(answer, Added) else answer.existing
        return JobHandle(app, job_id, app.registry.get(plan.template.job), is_new=is_new)

    async def backfill(
        self, name: str, start: datetime, end: datetime, *, limit: int = MAX_JOBS_PER_CALL, by: str | None = None, reason: str = ""
    ) -> builtins.list[JobHandle[Any]]:
        """Add a job or flow for each of the schedule's times from `start` (inclusive) to `end` (exclusive). Return the handles of the jobs,
        or of the flows' last jobs, in order.

        Nothing is added for a time if the store still knows its job, or a job of its flow. `overlap`, `catch_up` and
        `max_delay` do not apply. Raises ValueError and adds nothing if there are more than `limit` times, or if `start` or `end` is naive.
        Also raises ValueError if there is more than one time and the calls have a key, because only one of the jobs could be live.
        """
        app = default_app()
        plan = await stored_plan(name)
        instants = builtins.list(islice(instants_between(timetable_of(app, name, plan), start, end), limit + 1))
        if len(instants) > limit:
            raise ValueError(f"schedule {name!r} has more than {limit:,} times in this span: raise limit=, or choose a shorter span")
        check_backfill(name, plan, len(instants))
        handles = builtins.list[JobHandle[Any]]()
        portion = 1 if plan.is_flow else max(1, min(MAX_JOBS_PER_CALL, MAX_BYTES // max(1, len(plan.template.payload))))
        async with _recorded("backfill", name, by, reason, {"from": start.isoformat(), "to": end.isoformat()}) as doing:
            for first in range(0, len(instants), portion):
                fired = [plan.envelopes_for(name, instant, is_alone=True) for instant in instants[first : first + portion]]
                envelopes = stamped_envelopes(app.settings.middleware, app.registry.get, [each for some in fired for each in some])
                added = _handles(app, plan, (await app.client().enqueue(envelopes))[len(plan.before) :: len(plan.templates)])
                doing.affected += sum(handle.is_new for handle in added)
                handles += added
        return handles

    async def _amend(self, name: str, amendment: Amendment, by: str | None, reason: str) -> None:
        async with _recorded(amendment.value, name, by, reason) as doing:
            if not is_schedule_name(name) and not await _records([name]):
                raise _unknown(name)
            if await _client().call(lambda broker: broker.admin.amend_schedule(name, amendment)):
                doing.affected = 1
                return
            if not await _records([name]):
                raise _unknown(name)
            raise ScheduleConflict(
                f"schedule {name!r} is declared by a running worker: pause it, or remove it from the code and deploy that"
            )


schedules: Final = Schedules()


def _recorded(
    kind: str, name: str, by: str | None, reason: str, which: Mapping[str, str] | None = None
) -> AbstractAsyncContextManager[ActionProgress]:
    """Return a context manager that records the action in the audit log if `by` or `reason` is given."""
    check_operator(by, reason)
    if by is None and not reason:
        return nullcontext(ActionProgress())
    return recorded(_client().call, f"schedules.{kind}", by=by, reason=reason, names=[name], which=which)


def _client() -> LoopClient:
    return default_app().client()


async def _records(names: Sequence[str] | None) -> list[ScheduleRecord]:
    """Return the records of the named schedules, or of all for None. A name that taskflow would reject is looked up among all."""
    if names is None or all(map(is_schedule_name, names)):
        return await _client().call(lambda broker: broker.admin.schedules(names))
    return [record for record in await _records(None) if record.name in names]


async def stored_plan(name: str) -> SchedulePlan:
    """Return the definition of a schedule. Raises UnknownSchedule if there is no such schedule, and DecodeError if it cannot be read."""
    found = await _records([name])
    if not found:
        raise _unknown(name)
    try:
        return SchedulePlan.from_body(found[0].body)
    except Exception as error:
        raise DecodeError(f"the stored definition of schedule {shown(name)} cannot be read: {type(error).__name__}: {error}") from error


def _unknown(name: str) -> UnknownSchedule:
    return UnknownSchedule(f"there is no schedule called {shown(name)}: schedules.list() shows all of them")


def timetable_of(app: App, name: str, plan: SchedulePlan) -> Timetable:
    """Return the timetable of a schedule. Raises ConfigurationError if it is defined in code that this process has not imported."""
    if not isinstance(plan.times, OwnTimes):
        return plan.times
    for job in app.registry:
        for schedule in job.schedules:
            if schedule.name == name:
                return schedule.timetable
    raise ConfigurationError(f"the times of schedule {name!r} are computed by {plan.times.kind}: import the module that declares it first")


def instants_between(timetable: Timetable, start: datetime, end: datetime) -> Iterator[int]:
    """Yield the timetable's instants in [start, end), in microseconds since 1970. Raises ValueError for naive datetimes."""
    at: datetime | None = instant_of(microseconds_of(start) - 1)
    while at is not None and (at := timetable.next(at)) is not None and microseconds_of(at) < microseconds_of(end):
        yield microseconds_of(at)


def check_backfill(name: str, plan: SchedulePlan, times: int) -> None:
    """Raise ValueError for several times if the calls have a key, because all jobs but one would be refused or replaced."""
    if times > 1 and plan.template.key is not None:
        key = shown(plan.template.key_text)
        raise ValueError(
            f"schedule {shown(name)}: its calls have the key {key}, so only one of {times:,} jobs could be live: use a span with one time"
        )


def _handles(app: App, plan: SchedulePlan, answers: Sequence[Added | Refused]) -> list[JobHandle[Any]]:
    job = app.registry.get(plan.template.job)
    return [
        JobHandle(app, answer.id, job) if isinstance(answer, Added) else JobHandle(app, answer.existing, job, is_new=False)
        for answer in answers
    ]


def schedule_info_of(record: ScheduleRecord) -> ScheduleInfo:
    """Convert a stored record to a `ScheduleInfo`. If the definition cannot be read, `problem` says why."""
    try:
        plan, problem = SchedulePlan.from_body(record.body), None
    except Exception as error:
        plan, problem = _UNREADABLE, f"{type(error).__name__}: {error}"
    zone = zone_of(plan.zone)
    lag = None
    if record.last_at is not None and record.fired_at is not None:
        lag = plan.lag_of(record.name, microseconds_of(record.last_at), microseconds_of(record.fired_at))
    is_waiting = not record.is_paused and record.asleep_since is None
    shared: dict[str, Any] = {name: getattr(record, name) for name in _OF_RECORD} | {name: getattr(plan, name) for name in _OF_PLAN}
    return ScheduleInfo(
        timetable=str(plan.times),
        job=plan.template.job,
        flow=_flow_text(plan.templates) if plan.is_flow else None,
        queue=plan.template.queue,
        next_at=_local(record.next_at, zone) if is_waiting else None,
        last_at=_local(record.last_at, zone),
        last_id=None if record.last_id is None else id_text(record.last_id),
        lag=lag,
        asleep_since=_local(record.asleep_since, zone),
        problem=problem,
        **shared,
    )


def _flow_text(templates: Sequence[Envelope]) -> str:
    counts = Counter(template.job for template in templates)
    names = [job if count == 1 else f"{count:,} {job}" for job, count in counts.items()]
    more = ", ..." if len(names) > MAX_NAMED else ""
    return f"{len(templates):,} job{'s' if len(templates) > 1 else ''}: {', '.join(names[:MAX_NAMED])}{more}"


_OF_RECORD: Final = ("name", "fired", "skipped", "missed", "is_paused", "is_declared", "declarers")
_OF_PLAN: Final = ("overlap", "catch_up", "max_delay", "jitter")


def _local(instant: datetime | None, zone: tzinfo) -> datetime | None:
    try:
        return None if instant is None else instant.astimezone(zone)
    except OverflowError:  # another program has stored an instant at the edge of the calendar
        return instant


_UNREADABLE: Final = SchedulePlan(times=OwnTimes("?"), template=Envelope(id=bytes(16), job="?", payload=b""))
