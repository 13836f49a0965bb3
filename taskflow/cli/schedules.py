"""`taskflow schedules`: lists schedules, changes them, and computes the times of an expression or an interval."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice
from typing import Any, Final

import msgspec

from taskflow.app.app import App
from taskflow.app.declared_schedules import check_schedule_name, is_schedule_name
from taskflow.app.schedules import ScheduleInfo, check_backfill, instants_between, schedule_info_of, schedules, stored_plan
from taskflow.broker.protocol import Broker
from taskflow.cli.command import existing_broker, on_store, operator, reporting, suggestion
from taskflow.cli.exit_codes import Exit
from taskflow.cli.terminal import confirmed, room, show, warn, wrapped
from taskflow.model.clock import instant_of
from taskflow.model.errors import ConfigurationError, ScheduleConflict, UnknownSchedule
from taskflow.model.ids import parse_id
from taskflow.model.printable import INDENT, MAX_CHARACTERS, message, moment, one_line
from taskflow.model.record import Status
from taskflow.model.schedule import ScheduleRecord
from taskflow.model.schedule_plan import PROMPT
from taskflow.model.timetable import CronTimes, EveryTimes, OwnTimes, zone_of

PAGE: Final = 500
MAX_NAME, MAX_STATE = 30, 500  # maximum characters of a name or a timetable, and of a state, in a list on a terminal
NEVER: Final = "has not fired yet"
NONE: Final = "there are no schedules: start a worker whose jobs declare some, or add one with schedules.put()"
ENDED_AS: Final = {
    None: "is no longer kept",
    Status.SUCCEEDED: "has succeeded",
    Status.FAILED: "has failed",
    Status.CANCELLED: "was cancelled",
}


@on_store
async def list_schedules(app: App, arguments: argparse.Namespace) -> int:
    broker = await existing_broker(app)
    names = await _names_of(broker, arguments.names)
    found = [schedule_info_of(record) for record in await _stored(broker, names)]
    outcomes = await _outcomes(broker, found)
    document = (msgspec.structs.asdict(info) | {"last_status": outcome} for info, outcome in zip(found, outcomes, strict=True))
    show(arguments, document, _details(found, outcomes) if names else _rows(found, outcomes) if found else iter([NONE]))
    unknown = set(names).difference(info.name for info in found)
    for name in sorted(unknown):
        await _report_unknown(broker, name)
    return Exit.NOT_FOUND if unknown else Exit.OK


async def _outcomes(broker: Broker, found: Sequence[ScheduleInfo]) -> list[Status | None]:
    """Return the status of each schedule's last job; None if the schedule has added no job or the store no longer keeps it."""
    ids = {info.last_id: parse_id(info.last_id) for info in found if info.last_id is not None}
    statuses = dict[str | None, Status]()
    for first in range(0, len(ids), PAGE):
        portion = dict(islice(ids.items(), first, first + PAGE))
        records = await broker.read(list(portion.values()))
        statuses |= {text: record.status for text, record in zip(portion, records, strict=True) if record is not None}
    return [statuses.get(info.last_id) for info in found]


def _rows(found: Sequence[ScheduleInfo], outcomes: Sequence[Status | None]) -> Iterator[str]:
    """Yield a row for each schedule. On a narrow terminal, its state, and perhaps its next time, follow on separate lines."""
    is_terminal, most = sys.stdout.isatty(), room()
    widest, longest = (MAX_NAME, MAX_STATE) if is_terminal else (MAX_CHARACTERS, MAX_CHARACTERS)
    rows = [("SCHEDULE", "WHEN", "NEXT", "STATE")]
    for info, outcome in zip(found, outcomes, strict=True):
        last = _last(info, outcome)
        state = "; ".join(filter(None, [*_troubles(info), f"last {last}" if last else NEVER, _counts(info), _declarers(info)]))
        rows.append((one_line(info.name, widest), one_line(info.timetable, widest), _next(info), one_line(state, longest)))
    first, second, third, fourth = (max(map(len, column)) for column in zip(*rows, strict=True))
    left = most - (first + second + third + 4)
    beside = 4 if not is_terminal or fourth + 2 <= left else 3 if left >= 0 else 2
    for name, when, following, state in rows:
        cells = [f"{name:{first}}", f"{when:{second}}", f"{following:{third}}", state]
        yield one_line("  ".join(cells[:beside]).rstrip(), most)
        for text in filter(None, map(str.strip, cells[beside:])):
            yield from (f"{INDENT}{line}" for line in wrapped(text, most - len(INDENT)))


def _details(found: Sequence[ScheduleInfo], outcomes: Sequence[Status | None]) -> Iterator[str]:
    for info, outcome in zip(found, outcomes, strict=True):
        yield from (f"{name:16} {one_line(value)}" for name, value in _in_full(info, outcome).items() if value)
        yield ""


def _in_full(info: ScheduleInfo, outcome: Status | None) -> dict[str, str | None]:
    return {
        "name": info.name,
        "when": info.timetable,
        "job": None if info.flow else f"{info.job}, queue {info.queue}",
        "flow": info.flow,
        "next": _next(info) or ("none" if _troubles(info) else "no further time, or no worker has computed it yet"),
        "last": _last(info, outcome) or NEVER,
        "last job": info.last_id,
        "counts": _counts(info),
        "overlap": info.overlap,
        "catch up": info.catch_up if info.max_delay is None else f"{info.catch_up}, at most {info.max_delay:g} s late",
        "jitter": f"{info.jitter:g} s" if info.jitter else None,
        "state": "; ".join(_troubles(info)),
        "declared by": ", ".join(info.declarers) if info.is_declared else "no code: schedules.put() stored it",
    }


def _next(info: ScheduleInfo) -> str:
    return "" if info.next_at is None else moment(info.next_at)


def _troubles(info: ScheduleInfo) -> list[str]:
    """Return the reasons why a schedule does not fire."""
    troubles = ["paused"] if info.is_paused else []
    if info.asleep_since is not None:
        troubles.append(f"asleep since {moment(info.asleep_since.replace(microsecond=0))}, because no running worker declares it")
    elif info.next_at is not None and (late := (datetime.now(UTC) - info.next_at).total_seconds() - info.jitter) > PROMPT:
        troubles.append(f"due for {late:,.0f} s, and no worker fires it")
    return [*troubles, f"problem: {info.problem}"] if info.problem else troubles


def _last(info: ScheduleInfo, outcome: Status | None) -> str:
    if info.last_at is None:
        return ""
    late = "" if info.lag is None else f", {max(0.0, info.lag):.3f} s late"
    job = "" if info.last_id is None else f"; its last job {ENDED_AS.get(outcome, f'is {outcome}')}"
    return f"{moment(info.last_at)}{late}{job}"


def _counts(info: ScheduleInfo) -> str:
    counts = {"fired": info.fired, "skipped": info.skipped, "missed": info.missed}
    return ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)


def _declarers(info: ScheduleInfo) -> str:
    if not info.is_declared:
        return "put"
    if not info.declarers:
        return ""
    first, *more = info.declarers
    return f"declared by {first}{f' and {len(more)} more' if more else ''}"


@on_store
async def act(app: App, arguments: argparse.Namespace) -> int:
    broker, action = await existing_broker(app), arguments.action
    names = await _names_of(broker, arguments.names)
    if action == "remove" and not confirmed(f"remove {', '.join(map(one_line, names))}?", arguments):
        return Exit.FAILED
    codes, report = {Exit.OK}, list[dict[str, Any]]()
    for name in names:
        text, fields = "", dict[str, Any]()
        try:
            text, fields = await ACTIONS[action](name, arguments)
        except (UnknownSchedule, ScheduleConflict) as error:
            fields = {"problem": str(error)}
            if isinstance(error, UnknownSchedule):
                await _report_unknown(broker, name)
                codes.add(Exit.NOT_FOUND)
            else:
                warn(message(str(error)))
                codes.add(Exit.FAILED)
        report.append({"name": name, **dict.fromkeys(("problem", "job", "times", "first", "last", "added")), **fields})
        if text and not arguments.json:
            print(one_line(text))
    dry_run = getattr(arguments, "dry_run", False)
    show(arguments, {"action": f"schedules.{action}", "dry_run": dry_run, "schedules": report}, ())
    return max(codes)


Done = tuple[str, dict[str, Any]]  # a line for the terminal, and fields of the JSON


async def _trigger(name: str, arguments: argparse.Namespace) -> Done:
    handle = await schedules.trigger(name, **operator(arguments))
    if not handle.is_new:
        raise ScheduleConflict(f"schedule {name!r} was not triggered: its job {handle.id} is live, and overlap= allows only one")
    return f"triggered {name}: job {handle.id}", {"job": handle.id}


async def _pause(name: str, arguments: argparse.Namespace) -> Done:
    """Pause or resume a schedule. If it's in the wanted state already, change nothing and record no action."""
    action = arguments.action
    info = await schedules.get(name)
    if info is not None and info.is_paused == (action == "pause"):
        return f"{name} is paused already" if info.is_paused else f"{name} is not paused", {}
    await (schedules.pause if action == "pause" else schedules.resume)(name, **operator(arguments))
    return f"{action}d {name}", {}


async def _remove(name: str, arguments: argparse.Namespace) -> Done:
    await schedules.remove(name, **operator(arguments))
    return f"removed {name}", {}


async def _backfill(name: str, arguments: argparse.Namespace) -> Done:
    plan = await stored_plan(name)
    if isinstance(plan.times, OwnTimes):
        raise ConfigurationError(
            f"the times of schedule {name!r} are computed by {one_line(plan.times.kind)}: call schedules.backfill() in code that imports it"
        )
    zone = zone_of(plan.zone)
    start, end = (at if at.tzinfo is not None else at.replace(tzinfo=zone) for at in (arguments.start, arguments.end))
    if start >= end:
        raise ConfigurationError("--to must be later than --from")
    instants = list(islice(instants_between(plan.times, start, end), arguments.limit + 1))
    if len(instants) > arguments.limit:
        many = f"schedule {name!r} has more than {arguments.limit:,} times in this span"
        raise ConfigurationError(f"{many}: raise --limit, or choose a shorter span")
    with reporting(ValueError):
        check_backfill(name, plan, len(instants))
    ends = [instant_of(at).astimezone(zone) for at in (instants[:1] + instants[-1:])]
    span = f", first {moment(ends[0])}, last {moment(ends[1])}" if ends else ""
    fields = {"times": len(instants), "added": 0, **dict(zip(("first", "last"), ends, strict=False))}
    if arguments.dry_run:
        return f"would backfill {name} with {len(instants):,}{span}", fields
    handles = await schedules.backfill(name, start, end, limit=arguments.limit, **operator(arguments))
    added = sum(handle.is_new for handle in handles)
    known = f"; {len(handles) - added:,} existed already" if added < len(handles) else ""
    return f"backfilled {name} with {added:,}{span}{known}", fields | {"times": len(handles), "added": added}


ACTIONS: Final = {"trigger": _trigger, "pause": _pause, "resume": _pause, "remove": _remove, "backfill": _backfill}


async def _stored(broker: Broker, names: Sequence[str]) -> list[ScheduleRecord]:
    """Return the schedules with these names, or all if `names` is empty. Invalid names, which other programs have stored, are searched for
    among all schedules."""
    if all(map(is_schedule_name, names)):
        return await broker.admin.schedules(names or None)
    return [record for record in await broker.admin.schedules() if record.name in names]


async def _names_of(broker: Broker, given: Sequence[str]) -> list[str]:
    """Return the names that the user means. A name with control characters, stored by another program, can be given in the escaped form
    that lists show. Raises ConfigurationError for any other invalid name."""
    usual = [name for name in given if is_schedule_name(name)]
    known = {record.name for record in await broker.admin.schedules(usual)} if usual else set()
    if known.issuperset(given):
        return list(dict.fromkeys(given))
    invalid = [record.name for record in await broker.admin.schedules() if not is_schedule_name(record.name)]
    shown = {form: name for name in invalid for form in (name, one_line(name))}
    with reporting(ValueError):
        return list(dict.fromkeys(shown.get(name, name) if name in shown else check_schedule_name(name) for name in given))


async def _report_unknown(broker: Broker, name: str) -> None:
    known = [record.name for record in await broker.admin.schedules()]
    warn(f"there is no schedule called {name!r}{suggestion(name, known)}")


def next_times(arguments: argparse.Namespace) -> int:
    with reporting(TypeError, ValueError):
        zone, times = zone_of(arguments.tz), _timetable(arguments)
    at = datetime.now(UTC)
    if (start := arguments.start) is not None:  # includes a time equal to `--from`
        at = (start if start.tzinfo is not None else start.replace(tzinfo=zone)).astimezone(UTC) - timedelta(microseconds=1)
    found = list[tuple[datetime, str]]()
    while len(found) < arguments.count and (following := times.next(at)) is not None:
        at = following
        found.append((at.astimezone(zone), _note(times, at, zone)))
    document = ({"at": at, "here": at.astimezone(), "note": note} for at, note in found)
    return show(arguments, document, (f"{moment(at)}{note and f'  ({note})'}" for at, note in found))


def _timetable(arguments: argparse.Namespace) -> CronTimes | EveryTimes:
    if bool(arguments.expression) == (arguments.every is not None):
        raise ConfigurationError('schedules next takes either an expression in quotes, such as "0 9 * * MON-FRI", or --every SECONDS')
    if arguments.every is not None:
        return EveryTimes.checked(arguments.every)
    if len(arguments.expression) > 1:
        raise ConfigurationError(f"schedules next takes one expression, got {len(arguments.expression)} arguments: put it in quotes")
    return CronTimes.checked(arguments.expression[0], arguments.tz)


def _note(times: CronTimes | EveryTimes, at: datetime, zone: tzinfo) -> str:
    """Describe how a clock change, such as daylight saving time, affects the time. Return "" if none does."""
    if not isinstance(times, CronTimes):
        return ""
    if (skipped := times.skipped_before(at)) is not None:
        return f"for {skipped:%H:%M}, which the clock skips"
    local = at.astimezone(zone)
    first, second = local.replace(fold=0).utcoffset(), local.replace(fold=1).utcoffset()
    if first == second or first is None or second is None or first < second:
        return ""
    if not times.is_real_time:
        return f"the clock repeats {local:%H:%M}; it fires only the first time"
    return f"the {'second' if local.fold else 'first'} {local:%H:%M}, which the clock repeats"
