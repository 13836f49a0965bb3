"""`Cron` and `Every`, which determine when a schedule fires, and the schedules that a job's decorator declares."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, get_args
from zoneinfo import ZoneInfo

import msgspec

from taskflow.app.options import EnqueueOptions
from taskflow.app.settings import Settings
from taskflow.model.envelope import Envelope
from taskflow.model.printable import shown
from taskflow.model.rules import seconds_of
from taskflow.model.schedule import MAX_NAME, Definition
from taskflow.model.schedule_plan import MAX_FLOW_JOBS, NO_ID, CatchUp, Overlap, SchedulePlan
from taskflow.model.timetable import CronTimes, EveryTimes, OwnTimes, Timetable

TIMES_EXAMINED: Final = 50


class _Timed:
    """The base of `Cron` and `Every`: the times, and the arguments and options of the jobs that the schedule adds."""

    __slots__ = ("args", "jitter", "kwargs", "name", "options", "times")

    def __init__(
        self,
        times: CronTimes | EveryTimes,
        jitter: float | timedelta,
        name: str | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        options: EnqueueOptions | None,
    ) -> None:
        if isinstance(args, str) or not isinstance(args, Sequence):
            raise TypeError(f"args={shown(args)}: expected a tuple of arguments, as in args=({shown(args)},)")
        self.times = times
        self.jitter = seconds_of("jitter", jitter)
        self.name = name
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        self.options = EnqueueOptions(**(options or {}))

    def next(self, after: datetime) -> datetime | None:
        """Return the schedule's first time later than `after`, or None if it has none before the year 10000. Raises ValueError if `after`
        is naive."""
        return self.times.next(after)

    def __str__(self) -> str:
        return str(self.times)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.times}>"


class Cron(_Timed):
    """A schedule that fires when a cron expression matches.

    `expression`  five fields, or six with seconds first: ``"0 9 * * MON-FRI"``; or @hourly, @daily, @weekly, @monthly or @yearly. The
                  fields are those of Debian's cron, with ``L`` for the last day of a month and ``5#2`` for its second Friday. At most
                  200 characters
    `tz`          the IANA name of the time zone in which the expression is read, or a ZoneInfo (default "UTC")
    `jitter`      the longest delay, in seconds or as a timedelta; each firing has a fixed delay between 0 and this (default 0). It must be
                  shorter than the shortest interval between two firings
    `name`        the schedule's name (default: the job's name, followed by the expression if the job has several schedules)
    `args`, `kwargs`  the arguments of its calls (default none)
    `options`     the options of its calls, as for `.options()`, except `after` and `at`

    `name`, `args`, `kwargs` and `options` are only for the decorator: `schedules.put` takes a name and a call.
    Raises a TypeError or ValueError that says which part of the expression, or which argument, is invalid.
    """

    __slots__ = ()

    def __init__(
        self,
        expression: str,
        *,
        tz: str | ZoneInfo = "UTC",
        jitter: float | timedelta = 0.0,
        name: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: EnqueueOptions | None = None,
    ) -> None:
        times = CronTimes.checked(expression, tz)
        super().__init__(times, jitter, name, args, kwargs, options)
        at = times.next(datetime.now(UTC)) if self.jitter else None
        for _ in range(TIMES_EXAMINED):
            following = None if at is None else times.next(at)
            if at is None or following is None:
                break
            if self.jitter >= (gap := (following - at).total_seconds()):
                raise ValueError(f"jitter={shown(jitter)}: expected less than the interval between two firings, here {gap:g} s")
            at = following


class Every(_Timed):
    """A schedule that fires at a fixed interval, counted from 1970-01-01 00:00 UTC, so a deploy does not shift it.

    `seconds`  the interval in seconds, or as a timedelta; at least 1

    The other arguments and the errors are as for `Cron`. `jitter` must be less than the interval.
    """

    __slots__ = ()

    def __init__(
        self,
        seconds: float | timedelta,
        *,
        jitter: float | timedelta = 0.0,
        name: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: EnqueueOptions | None = None,
    ) -> None:
        times = EveryTimes.checked(seconds)
        super().__init__(times, jitter, name, args, kwargs, options)
        if self.jitter >= times.seconds:
            raise ValueError(f"jitter={shown(jitter)}: expected less than the interval, {times.seconds:g} s")


KEY_AND_OVERLAP: Final = (
    'key= and overlap="{}" cannot be combined, because overlap= gives the jobs a key too: use on_conflict= instead of overlap=, '
    'or remove a declared key with options={{"key": ""}} or .options(key="")'
)

NOT_RAISED: Final = 'a worker sends the calls, so their on_conflict must be "keep" or "replace", not "raise"'


class DeclaredSchedule:
    """A schedule that a job's decorator declares. The arguments of its calls are encoded when `definition` is first used, and again after
    the settings have changed."""

    def __init__(self, name: str, timetable: Timetable, job: Any, terms: dict[str, Any]) -> None:
        self._defined: tuple[Settings, Definition] | None = None
        self.name = name
        self.timetable = timetable
        self._job = job
        self._terms = terms

    @property
    def queue(self) -> str | None:
        """The queue that the schedule's options name, or None."""
        return self.timetable.options.get("queue") if isinstance(self.timetable, Cron | Every) else None

    @property
    def definition(self) -> Definition:
        """The definition to store. Raises the same errors as `delay` for arguments that cannot be encoded."""
        settings = self._job.app.read_settings()
        if self._defined is None or self._defined[0] is not settings:
            if isinstance(timed := self.timetable, Cron | Every):
                call = self._job.options(**timed.options).bind(*timed.args, **timed.kwargs)
                plan = plan_of(timed.times, [call.envelope], jitter=timed.jitter, terms=self._terms)
            else:
                times = OwnTimes(f"{type(timed).__module__}.{type(timed).__qualname__}")
                plan = plan_of(times, [self._job.bind().envelope], jitter=0.0, terms=self._terms)
            self._defined = settings, plan.to_definition(self.name)
        return self._defined[1]


def plan_of(times: Any, envelopes: Sequence[Envelope], *, jitter: float, terms: dict[str, Any]) -> SchedulePlan:
    """Return the plan of a schedule that sends these envelopes, which are one job or one flow. Raises ValueError if an
    envelope has a start time, if the job has a key and `overlap` is not "allow", or if a flow has too many jobs or the overlap "latest"."""
    *before, last = envelopes
    if any(envelope.after or envelope.at is not None for envelope in envelopes):
        raise ValueError("a schedule decides when its jobs start: remove after=, at= and debounce= from its options")
    if last.key is not None and terms["overlap"] != "allow":
        raise ValueError(KEY_AND_OVERLAP.format(terms["overlap"]))
    if last.member is None:
        last = msgspec.structs.replace(last, id=NO_ID)
    elif terms["overlap"] == "latest":
        raise ValueError('overlap="latest" is for single jobs: a flow takes "skip" or "allow"')
    elif len(envelopes) > MAX_FLOW_JOBS:
        raise ValueError(f"the flow has {len(envelopes):,} jobs, but a schedule can send {MAX_FLOW_JOBS:,}: schedule a job that sends it")
    return SchedulePlan(times=times, template=last, before=tuple(before), jitter=jitter, **terms)


def terms_of(overlap: object, catch_up: object, max_delay: Any) -> dict[str, Any]:
    """Check the options of a schedule, and return them as fields of `SchedulePlan`. Raises TypeError or ValueError, naming the option."""
    for name, value, kind in (("overlap", overlap, Overlap), ("catch_up", catch_up, CatchUp)):
        if value not in get_args(kind):
            raise ValueError(f"{name}={shown(value)}: expected one of {', '.join(map(repr, get_args(kind)))}")
    latest = None if max_delay is None else seconds_of("max_delay", max_delay)
    if latest is not None and latest < 1.0:
        raise ValueError(f"max_delay={shown(max_delay)}: expected at least 1 second, because a schedule always fires a little late")
    return {"overlap": overlap, "catch_up": catch_up, "max_delay": latest}


def check_schedule_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"schedule name {shown(name)}: expected a str")
    if not is_schedule_name(name):
        raise ValueError(f"schedule name {shown(name)}: expected 1 to {MAX_NAME} printable characters")
    return str(name)


def is_schedule_name(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME and name.isprintable()


def declared_schedules(job: Any, given: dict[str, Any]) -> tuple[DeclaredSchedule, ...]:
    """Return the schedules that a job's decorator declares. Raises TypeError or ValueError if one is invalid."""
    timetables = _timetables(given.get("schedule"))
    terms = terms_of(given.get("overlap") or "allow", given.get("catch_up") or "latest", given.get("max_delay"))
    if not timetables:
        for option in ("overlap", "catch_up", "max_delay"):
            if given.get(option) is not None and "schedule" not in given:
                raise ValueError(f"{option}= is for scheduled jobs: add schedule=")
        return ()
    names = [_name_of(timetable, job.name, is_alone=len(timetables) == 1) for timetable in timetables]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"schedule= has two schedules called {name!r}: give one of them another name=")
    return tuple(_declared(job, name, timetable, terms) for name, timetable in zip(names, timetables, strict=True))


def _timetables(value: Any) -> list[Timetable]:
    is_one = isinstance(value, str) or callable(getattr(value, "next", None)) or not isinstance(value, Iterable)
    given: list[Any] = [value] if is_one else list(value)
    timetables = [timetable for timetable in given if timetable is not None]
    for timetable in timetables:
        if not callable(getattr(timetable, "next", None)):
            hint = f"; write Cron({timetable!r})" if isinstance(timetable, str) else ""
            raise TypeError(f"schedule={shown(timetable)}: expected Cron(...), Every(...), or an object with a method next(after){hint}")
    return timetables


def _name_of(timetable: Timetable, job_name: str, *, is_alone: bool) -> str:
    name = getattr(timetable, "name", None)
    if name is None:
        if not is_alone and (type(timetable).__str__, type(timetable).__repr__) == (object.__str__, object.__repr__):
            raise ValueError(f"schedule={shown(timetable)}: it needs a `name` attribute, because the job has several schedules")
        name = job_name if is_alone else f"{job_name} {timetable}"
    return check_schedule_name(name)


def _declared(job: Any, name: str, timetable: Timetable, terms: dict[str, Any]) -> DeclaredSchedule:
    timed = timetable if isinstance(timetable, Cron | Every) else None
    try:
        inspect.signature(job).bind(*(timed.args if timed else ()), **(timed.kwargs if timed else {}))
    except TypeError as error:
        raise TypeError(f"schedule={timetable}: {error}: pass it with Cron(..., args=(...)), or give the parameter a default") from None
    options = timed.options if timed else {}
    for option in ("after", "at"):
        if option in options:
            raise ValueError(f"schedule={timetable}: options={{{option!r}: ...}}: a schedule decides when its jobs start")
    if "connection" in options:
        raise ValueError(f"schedule={timetable}: options={{'connection': ...}}: a schedule's jobs are sent by workers")
    scheduled = job.options(**options)
    if scheduled._given.get("raises_on_conflict"):
        raise ValueError(f"schedule={timetable}: {NOT_RAISED}: set options={{'on_conflict': 'keep'}}")
    if scheduled.key is not None and terms["overlap"] != "allow":
        raise ValueError(KEY_AND_OVERLAP.format(terms["overlap"]))
    return DeclaredSchedule(name, timetable, job, terms)
