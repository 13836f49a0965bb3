"""Which times of an offered schedule fire, and what each adds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from taskflow.model.clock import MICROSECONDS, microseconds_of
from taskflow.model.envelope import Envelope, OnConflict
from taskflow.model.flow import Member, Tie
from taskflow.model.schedule import MAX_OFFERS, Firing, Offer
from taskflow.model.schedule_plan import MAX_COUNTED, PROMPT, SchedulePlan, firings_of, id_of, scheduled_for
from taskflow.model.timetable import CronTimes, EveryTimes, OwnTimes, Timetable

NOON = microseconds_of(datetime(2026, 5, 1, 12, tzinfo=UTC))
HOUR = 3_600 * MICROSECONDS
TEMPLATE = Envelope(id=bytes(16), job="report", payload=b"\x01", queue="reports", headers={"a": "b"})


def a_plan(**fields: Any) -> SchedulePlan:
    return SchedulePlan(**{"times": CronTimes("0 * * * *"), "template": TEMPLATE, **fields})


def steps(plan: SchedulePlan, next_at: int | None, now: int, times: Timetable | None = None) -> list[Firing]:
    """Return the steps of an offer. Each expects what the one before has set."""
    definition = plan.to_definition("nightly")
    offer = Offer(name="nightly", digest=definition.digest, body=definition.body, next_at=next_at, since=now, now=now)
    found = firings_of(offer, plan, times or plan.times)  # type: ignore[arg-type]
    assert [step.expected for step in found] == [next_at, *(step.next_at for step in found[:-1])]
    return found


def fired(found: list[Firing]) -> list[int]:
    """Return the hours from noon that add a job."""
    return [(step.expected - NOON) // HOUR for step in found if step.envelopes and step.expected is not None]


def left(found: list[Firing]) -> tuple[int, int]:
    """Return how many times were left out, and the next hour from noon."""
    assert found[-1].next_at is not None
    return sum(step.missed for step in found), (found[-1].next_at - NOON) // HOUR


@pytest.mark.parametrize("catch_up", ["none", "latest", "all"])
@pytest.mark.parametrize("late", [0.0, 0.5, PROMPT])
def test_a_time_that_is_hardly_late_fires_whatever_is_caught_up(catch_up: str, late: float) -> None:
    found = steps(a_plan(catch_up=catch_up), NOON, NOON + round(late * MICROSECONDS))
    assert (fired(found), left(found)) == ([0], (0, 1))


@pytest.mark.parametrize(("catch_up", "hours", "missed"), [("none", [], 4), ("latest", [3], 3), ("all", [0, 1, 2, 3], 0)])
def test_catch_up_decides_which_times_fire_after_an_outage(catch_up: str, hours: list[int], missed: int) -> None:
    found = steps(a_plan(catch_up=catch_up), NOON, NOON + 3 * HOUR + 60 * MICROSECONDS)
    assert (fired(found), left(found)) == (hours, (missed, 4))


@pytest.mark.parametrize(("catch_up", "hours", "missed"), [("none", [], 4), ("latest", [3], 3), ("all", [2, 3], 2)])
def test_max_delay_leaves_out_later_times(catch_up: str, hours: list[int], missed: int) -> None:
    plan = a_plan(catch_up=catch_up, max_delay=7_200.0)
    found = steps(plan, NOON, NOON + 3 * HOUR + 60 * MICROSECONDS)
    assert (fired(found), left(found)) == (hours, (missed, 4))


@pytest.mark.parametrize(("late", "hours"), [(PROMPT, [3]), (PROMPT + 1, [])])
def test_the_latest_time_after_an_outage_fires_if_it_is_hardly_late(late: float, hours: list[int]) -> None:
    found = steps(a_plan(catch_up="none"), NOON, NOON + 3 * HOUR + round(late * MICROSECONDS))
    assert (fired(found), left(found)) == (hours, (4 - len(hours), 4))


@pytest.mark.parametrize("back", [0, 1])
def test_a_timetable_that_does_not_move_on_is_refused(back: int) -> None:
    class Stuck:
        def next(self, after: datetime) -> datetime:
            return after - timedelta(hours=back)

    with pytest.raises(ValueError, match="which is not later"):
        steps(a_plan(times=OwnTimes("tests.Stuck")), NOON, NOON, Stuck())


def test_all_are_caught_up_in_portions() -> None:
    plan = a_plan(catch_up="all")
    first = steps(plan, NOON, NOON + 150 * HOUR)
    assert len(first) <= MAX_OFFERS
    assert first[-1].offer_at is not None
    assert first[-1].offer_at <= NOON + 150 * HOUR  # the others are due
    second = steps(plan, first[-1].next_at, NOON + 150 * HOUR)
    assert fired(first) + fired(second) == list(range(151))


@pytest.mark.parametrize("catch_up", ["none", "latest"])
@pytest.mark.parametrize("seconds", [1.0, 60.0, 86_400.0])
def test_a_long_outage_takes_few_steps_and_counts_so_many(catch_up: str, seconds: float) -> None:
    """Three years of one firing a second are not computed one by one."""
    now = NOON + round(1_000 * 86_400.5 * MICROSECONDS)
    counting = Counting(EveryTimes(seconds))
    found = steps(a_plan(times=EveryTimes(seconds), catch_up=catch_up), NOON, now, counting)
    assert counting.calls < 400
    assert len(found) == (2 if catch_up == "latest" or seconds < PROMPT else 1)
    assert sum(step.missed for step in found) in (MAX_COUNTED, MAX_COUNTED + 1)
    assert found[-1].next_at is not None
    assert 0 < found[-1].next_at - now <= seconds * MICROSECONDS


def test_a_schedule_that_has_no_further_time_says_so() -> None:
    plan = a_plan(times=OwnTimes("tests.Once"))
    [step] = steps(plan, NOON, NOON, Once())
    assert (step.next_at, step.offer_at) == (None, None)
    assert step.envelopes


def test_jitter_delays_each_time_by_its_own_share() -> None:
    plan = a_plan(jitter=600.0)
    delays = [plan.delay_of("nightly", NOON + n * HOUR) for n in range(200)]
    assert all(0 <= delay < 600 * MICROSECONDS for delay in delays)
    assert 200 * MICROSECONDS < sum(delays) / 200 < 400 * MICROSECONDS
    assert delays == [plan.delay_of("nightly", NOON + n * HOUR) for n in range(200)]
    assert delays[:5] != [plan.delay_of("daily", NOON + n * HOUR) for n in range(5)]


def test_a_time_with_jitter_waits_for_it() -> None:
    plan = a_plan(jitter=600.0)
    delay = plan.delay_of("nightly", NOON)
    [waiting] = steps(plan, NOON, NOON + delay - 1)
    assert (waiting.envelopes, waiting.offer_at) == ((), NOON + delay)
    [due] = steps(plan, NOON, NOON + delay)
    assert due.envelopes
    assert due.offer_at == NOON + HOUR + plan.delay_of("nightly", NOON + HOUR)


def test_the_job_of_a_time() -> None:
    envelope = a_plan(times=CronTimes("@hourly", "Europe/Paris")).envelopes_for("nightly", NOON)[0]
    assert msgspec.structs.replace(envelope, id=TEMPLATE.id, headers=TEMPLATE.headers) == TEMPLATE
    assert envelope.id == id_of("nightly", NOON)
    assert envelope.headers == {"a": "b", "tf-schedule": "nightly", "tf-scheduled-for": "2026-05-01T14:00:00+02:00[Europe/Paris]"}
    assert str(scheduled_for(envelope.headers)) == "2026-05-01 14:00:00+02:00"


@pytest.mark.parametrize(("overlap", "on_conflict"), [("skip", OnConflict.KEEP), ("latest", OnConflict.REPLACE)])
def test_overlap_is_a_key_of_the_schedule(overlap: str, on_conflict: OnConflict) -> None:
    plan = a_plan(overlap=overlap)
    one, other = plan.envelopes_for("nightly", NOON)[0], plan.envelopes_for("nightly", NOON + HOUR)[0]
    assert one.key == other.key
    assert one.key is not None
    assert one.on_conflict is on_conflict
    assert one.key != plan.envelopes_for("daily", NOON)[0].key
    assert plan.envelopes_for("nightly", NOON, is_alone=True)[0].key is None


def test_a_definition_is_the_same_in_each_process() -> None:
    assert a_plan().to_definition("nightly") == a_plan().to_definition("nightly")
    assert SchedulePlan.from_body(a_plan(catch_up="all").to_definition("nightly").body) == a_plan(catch_up="all")


def a_flow_definition(**changes: Any) -> bytes:
    """Return the definition of a schedule with a flow of two jobs, of which the first one is changed."""
    ids = [bytes(15) + bytes([number]) for number in (1, 2)]
    member = Member(bytes(16), 0, 0, 1)
    first = msgspec.structs.replace(TEMPLATE, id=ids[0], member=member, joins=(ids[1],), ties=(Tie(),))
    last = msgspec.structs.replace(TEMPLATE, id=ids[1], member=member._replace(number=1), awaits=1)
    before = (msgspec.structs.replace(first, **changes),)
    return msgspec.msgpack.encode({"times": EveryTimes(5.0), "template": last, "before": before})


def test_the_jobs_of_a_flow_get_ids_of_the_time() -> None:
    plan = SchedulePlan.from_body(a_flow_definition())
    first, last = plan.envelopes_for("nightly", NOON)
    assert (first.id, last.id) == (id_of("nightly", NOON, 1), id_of("nightly", NOON, 2))
    assert first.joins == (last.id,)
    assert first.member is not None
    assert last.member is not None
    assert {first.member.flow, last.member.flow} == {id_of("nightly", NOON)}
    assert first.headers == last.headers == plan.envelopes_for("nightly", NOON)[0].headers
    assert {each.id for each in plan.envelopes_for("nightly", NOON + HOUR)}.isdisjoint({first.id, last.id})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x80",
        msgspec.msgpack.encode({"times": {"type": "cron", "expression": "x", "tz": "UTC"}, "template": TEMPLATE}),
        msgspec.msgpack.encode({"times": {"type": "every", "seconds": 0.0}, "template": TEMPLATE}),
        msgspec.msgpack.encode({"times": {"type": "tomorrow"}, "template": TEMPLATE}),
        msgspec.msgpack.encode({"times": EveryTimes(5.0), "template": msgspec.structs.replace(TEMPLATE, queue="a b")}),
        msgspec.msgpack.encode({"times": EveryTimes(5.0), "template": TEMPLATE, "overlap": "perhaps"}),
        msgspec.msgpack.encode({"times": EveryTimes(5.0), "template": TEMPLATE, "before": [TEMPLATE]}),
        a_flow_definition(awaits=2),
        a_flow_definition(joins=(bytes(15) + b"\x09",)),
        a_flow_definition(key=bytes(16)),
        a_flow_definition(id=bytes(15) + b"\x02"),
        a_flow_definition(member=None),
    ],
)
def test_a_damaged_definition_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - msgspec's errors are of this kind, with words of their own
        SchedulePlan.from_body(body)


class Counting:
    def __init__(self, inside: EveryTimes) -> None:
        self._inside = inside
        self.calls = 0

    def next(self, after: datetime) -> datetime | None:
        self.calls += 1
        return self._inside.next(after)


class Once:
    def next(self, after: datetime) -> datetime | None:
        return None if after >= datetime(2026, 5, 1, 12, tzinfo=UTC) - timedelta(seconds=1) else datetime(2026, 5, 1, 12, tzinfo=UTC)
