"""`taskflow explain`: the reasons for the state of jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import pytest

from taskflow.app.explanation import Facts, Reason, facts_of, own_facts_of, reasons
from taskflow.broker.admin import Admin, View
from taskflow.model.clock import instant_of
from taskflow.model.envelope import Lease, OnConflict
from taskflow.model.ids import id_text
from taskflow.model.limits import RATE, Gate, gate_id
from taskflow.model.record import Record, Status
from taskflow.model.schedule import SCHEDULE
from taskflow.model.session import Report, Session, SessionRecord
from taskflow.model.verdict import Settlement, Snoozed
from tests.cli.inprocess import Cli
from tests.cli.stock import Stock
from tests.support.harnesses import MemoryHarness
from tests.support.verdicts import cancelled, discarded, failed, handed_back, parked, retried, settlement, snoozed
from tests.support.world import Job, World


def test_facts_are_asked_for_once_for_all_jobs_of_a_queue(cli: Cli, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The query takes a second if other jobs are ready."""
    asked = []

    async def facts_of(admin: Admin, record: Record, now: datetime) -> Facts:
        asked.append((record.queue, record.status))
        return Facts(now=now)

    monkeypatch.setattr("taskflow.cli.explain.facts_of", facts_of)
    told = cli.json("explain", *stock.all)
    assert len(told) == len(stock.all)
    assert asked.count(("mail", Status.READY)) == 1


def test_a_job_is_explained(cli: Cli, stock: Stock) -> None:
    nobody = id_text(bytes(16))
    said = cli("explain", stock.failed, stock.ready[0], nobody, code=4)
    assert (
        f"{stock.failed}  failed  bad  (queue default)\n1. its last attempt, 1 of 2, failed: builtins.ValueError: no such user\n"
        in said.out
    )
    assert "1. worker somewhere:1 does not take queue mail\n   -> start one with `--queues mail`\n" in said.out
    assert nobody in said.err
    [failed, none] = cli.json("explain", stock.failed, nobody, code=4)
    assert failed["reasons"][0]["cure"] == f"when the cause is fixed: `taskflow retry {stock.failed}`"
    assert none is None


def test_an_explanation_is_wrapped_on_a_terminal(cli: Cli, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines break between words, and a command to copy stays on one line."""
    lines = cli("explain", stock.failed).out.splitlines()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli("explain", stock.failed).out.splitlines() == [
        f"{stock.failed}  failed",
        "    bad  (queue default)",
        "1. its last attempt, 1 of 2, failed: builtins.ValueError: no",
        "   such user",
        "   -> when the cause is fixed:",
        f"      `taskflow retry {stock.failed}`",
    ]
    monkeypatch.setenv("COLUMNS", "120")
    assert cli("explain", stock.failed).out.splitlines() == lines


# --- planted causes; that each broker gives the same facts is proven by conformance -------------------------------------


Plant = Callable[[World], Awaitable[Job]]

_CAUSES: dict[str, tuple[Plant, str, str]] = {}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World(MemoryHarness) as opened:
        yield opened


def cause(text: str, cure: str = "") -> Callable[[Plant], Plant]:
    """Declare a cause: the function plants it, and the first reason has this text and this cure."""

    def declare(plant: Plant) -> Plant:
        _CAUSES[plant.__name__] = plant, text, cure
        return plant

    return declare


@cause("queue default is paused", "taskflow resume default")
async def paused(world: World) -> Job:
    await world.a_session()
    await world.broker.admin.pause("default")
    return await world.add()


@cause("no worker is running", "taskflow worker MODULE")
async def no_worker(world: World) -> Job:
    return await world.add()


@cause("worker elsewhere does not take queue default", "--queues default")
async def no_worker_of_the_queue(world: World) -> Job:
    await world.a_session("elsewhere", queues=("mail",))
    return await world.add()


@cause("none of the 2 workers knows work", "start one with its module")
async def no_worker_that_knows_it(world: World) -> Job:
    await world.a_session("one", jobs=("other",))
    await world.a_session("two", jobs=("another",), queues=("default",))
    return await world.add()


@cause("the only slot of worker busy is busy", "more workers")
async def busy_workers(world: World) -> Job:
    session = await world.a_session("busy", concurrency=1, jobs=("work",))
    await world.running(session)
    return await world.add()


@cause("it has been ready for 5s, behind 31 others in queue default; no job is being claimed", "wait")
async def behind_others(world: World) -> Job:
    await world.a_session(concurrency=10)
    await world.enqueue(*(world.an_envelope() for _ in range(31)))
    job = await world.add()
    world.clock.advance(5.0)
    return job


@cause("it was sent for later; it is ready in 1m")
async def planned(world: World) -> Job:
    return await world.add(after=60.0)


@cause("schedule nightly added it for later; it is ready in 1m")
async def added_by_a_schedule(world: World) -> Job:
    return await world.add(after=60.0, headers={SCHEDULE: "nightly"})


@cause("which is running with the same key", "wait for that job to end")
async def behind_the_holder_of_its_key(world: World) -> Job:
    await world.running(key="k", queue="default")
    return await world.add(key="k", on_conflict=OnConflict.REPLACE)


@cause("it waits for a slot of limit imports of acme", "a run that ends frees its slot")
async def at_a_gate(world: World) -> Job:
    gate = Gate(gate_id("imports", "acme"), "imports", "acme", 1)
    await world.add(limits=(gate,))
    return await world.add(limits=(gate,))


@cause("queue default is paused, and its jobs give back their slots", "taskflow resume default")
async def at_a_gate_of_a_paused_queue(world: World) -> Job:
    job = await world.add(limits=(Gate(gate_id("imports", "acme"), "imports", "acme", 1),))
    await world.broker.admin.pause("default")
    return job


async def told_at_limits(world: World, *limits: Gate, number: int = 2) -> list[Reason]:
    """Send jobs with these limits, and return why the last one waits."""
    jobs = [await world.add(limits=limits) for _ in range(number)]
    record = await world.record(jobs[-1])
    now = instant_of(world.clock.wall())
    return reasons(record, await facts_of(world.broker.admin, record, now), await own_facts_of(world.broker, record))


async def test_explain_shows_who_holds_a_limits_slots_and_how_many_wait(world: World) -> None:
    slots = [Gate(gate_id(name, "acme"), name, "acme", most) for name, most in (("imports", 2), ("shared", 9))]
    told = await told_at_limits(world, *slots, number=5)
    holders = [job.id for [limit] in [await world.broker.admin.limits("imports")] for job in limit.holders]
    held_by = " (ready), ".join(holders)
    assert [each.text for each in told] == [
        f"it waits for a slot of limit imports of acme: 2 of 2 are taken by {held_by} (ready); it is number 3 of 3 that wait"
    ]
    assert "taskflow limits set" in told[0].cure
    await world.broker.admin.set_limit(Gate(gate_id("shared", "acme"), "shared", "acme", 2), is_set=True)
    told = await told_at_limits(world, *slots, number=20)
    assert f"by {held_by} (ready); 23 jobs wait" in told[0].text
    assert [each.text.partition(" by ")[0] for each in told[1:]] == ["limit shared of acme is full, too: 2 of 2 are taken"]


async def test_explain_shows_when_a_rate_lets_the_job_start(world: World) -> None:
    calls = Gate(gate_id("api", "", kind=RATE), "api", "", 6, 60_000_000)
    [told] = await told_at_limits(world, calls, number=3)
    assert told.text == "limit api allows 6 in 1m: it starts in 20s; a job that is sent now starts in 30s"
    assert told.cure == "wait; `taskflow limits set` changes the number, and gives the waiting jobs new times at once"


async def test_explain_shows_that_a_refused_run_has_closed_the_rate(world: World) -> None:
    calls = Gate(gate_id("api", "", kind=RATE), "api", "", 60, 60_000_000)
    await told_at_limits(world, calls)
    [lease] = await world.claim(await world.a_session())
    await world.settle(settlement(lease, Snoozed(600.0, closes=True)))
    [told] = await told_at_limits(world, calls)
    closed = "limit api allows 60 in 1m: a run that was refused has closed it, and it opens in 10m; a job that is sent now starts in 10m"
    assert told.text.startswith("limit api allows 60 in 1m: it starts in 10m")
    [waiting] = (await world.broker.admin.page(View(statuses=(Status.SCHEDULED,)), limit=1)).records
    [told] = reasons(waiting, Facts(now=instant_of(world.clock.wall())), await own_facts_of(world.broker, waiting))
    assert told.text == closed


async def test_explain_shows_that_a_job_whose_rate_lets_it_start_needs_a_worker(world: World) -> None:
    """A limit of the same name that has free slots isn't the reason."""
    calls, slots = Gate(gate_id("api", "", kind=RATE), "api", "", 6, 60_000_000), Gate(gate_id("api", ""), "api", "", 5)
    jobs = [await world.add(limits=(calls, slots)) for _ in range(2)]
    world.clock.advance(60.0)
    record, now = await world.record(jobs[1]), instant_of(world.clock.wall())
    for number, said in ((0, "lets it start, but no worker is running"), (1, "lets it start at the next maintenance")):
        for _ in range(number):
            await world.a_session()
        facts = await facts_of(world.broker.admin, record, now)
        assert said in reasons(record, facts, await own_facts_of(world.broker, record))[0].text


async def test_explain_shows_that_no_run_frees_a_slot(world: World) -> None:
    slots = Gate(gate_id("imports", ""), "imports", "", 3)
    await told_at_limits(world, slots, number=4)
    await world.claim(await world.a_session())  # a lower number takes slots back from jobs that are ready, but not from runs
    for number, said in ((1, "it is free when 3 of their runs have ended"), (0, "none starts while the number is 0")):
        await world.broker.admin.set_limit(msgspec.structs.replace(slots, most=number), is_set=True)
        [told] = await told_at_limits(world, slots, number=1)
        assert told.cure.startswith(said)
    assert "its number is 0; 3 are still held by " in told.text


@cause("it waits for other jobs to end")
async def held_by_a_join(world: World) -> Job:
    return await world.add(awaits=2)


@cause("handed back 10 times without an outcome; it is ready again in 5s", "why its workers stop")
async def handed_back_often(world: World) -> Job:
    session = await world.a_session()
    lease = await world.running(session, queue="default")
    for _ in range(9):
        await world.settle(handed_back(lease))
        [lease] = await world.claim(session)
    await world.settle(handed_back(lease))
    return lease


@cause("it was asked to stop, but has not stopped yet", "ctx.cancelled")
async def asked_to_stop(world: World) -> Job:
    lease = await world.running()
    await world.cancel(lease)
    return lease


@cause("its worker stopped has sent no heartbeat for 15s", "another worker takes the job; none is running: start one")
async def on_a_silent_worker(world: World) -> Job:
    lease = await world.running(await world.a_session("stopped"))
    world.clock.advance(15.0)
    return lease


@cause("no heartbeat for 25s from worker stopped, which could run it", "start another one")
async def only_silent_workers(world: World) -> Job:
    session = await world.a_session("stopped", concurrency=1)
    await world.running(session)
    world.clock.advance(25.0)
    return await world.add()


@cause("it is due, but no worker is running", "start one")
async def due_without_a_worker(world: World) -> Job:
    await world.a_session("stopped")
    job = await world.add(after=10.0)
    world.clock.advance(25.0)
    return job


@cause("it has been running on worker for 3s, attempt 1 of 10")
async def running(world: World) -> Job:
    session = await world.a_session()
    lease = await world.running(session)
    await world.beat(session, lease, reports=[Report(lease.claim, 1.0)])
    world.clock.advance(2.0)
    return lease


@cause("worker worker took it 3s ago, but has not reported its start yet")
async def not_begun(world: World) -> Job:
    lease = await world.running()
    world.clock.advance(3.0)
    return lease


@cause("its worker was lost 4 times in a row", "find out what kills its workers")
async def poisonous(world: World) -> Job:
    job = await world.add()
    for _ in range(4):
        session = await world.a_session()
        await world.claim(session, limit=1)
        await world.die(session)
        await world.pass_time(400.0)
    return job


@cause("it expired: no worker started it in time", "start more workers")
async def expired(world: World) -> Job:
    job = await world.add(expires=10.0)
    await world.pass_time(11.0)
    return job


@cause("it expired before a worker started it; queue default is paused", "`taskflow resume default` ends the pause; then")
async def expired_in_a_pause(world: World) -> Job:
    job = await world.add(expires=10.0)
    await world.broker.admin.pause("default")
    await world.pass_time(11.0)
    return job


@cause("it was replaced by ", "see that job")
async def replaced(world: World) -> Job:
    job = await world.add(key="k")
    await world.add(key="k", on_conflict=OnConflict.REPLACE)
    return job


def settled(verdict: Callable[[Lease], Settlement], **fields: Any) -> Plant:
    """Plant a job whose run has ended this way."""

    async def plant(world: World) -> Job:
        lease = await world.running(**fields)
        await world.settle(verdict(lease))
        return lease

    return plant


NO_USER = "builtins.ValueError: no such user"
_CAUSES |= {
    "parked": (settled(partial(parked, after=60.0)), "it waits for a worker that knows the job 'work'", "deploy the code that sent it"),
    "to be retried": (
        *(settled(partial(retried, after=60.0)), f"attempt 1 of 10 failed: {NO_USER}; the next one starts in 1m"),
        "retry is automatic",
    ),
    "snoozing": (settled(partial(snoozed, after=60.0)), "it has snoozed once; it is ready again in 1m", ""),
    "out of attempts": (settled(failed, max_attempts=1), f"its last attempt, 1 of 1, failed: {NO_USER}", "taskflow retry"),
    "not retried": (settled(failed), f"{NO_USER}; this error is not retried", "taskflow retry"),
    "discarded": (settled(discarded), "it was discarded: not wanted", "taskflow retry"),
    "cancelled": (settled(cancelled), "it was cancelled: asked to", "runs it anyway"),
}


@pytest.mark.parametrize("name", _CAUSES)
async def test_the_cause_is_named_first_with_its_cure(world: World, name: str) -> None:
    plant, text, cure = _CAUSES[name]
    job = await plant(world)
    record = await world.record(job)

    first, *_ = reasons(record, await facts_of(world.broker.admin, record, instant_of(world.clock.wall())))

    assert text in first.text
    assert cure in first.cure.replace(id_text(record.id), "ID")
    assert (first.cure == "") == (cure == "") or name in ("held_by_a_join",)


async def test_further_reasons_follow(world: World) -> None:
    """The answer also names what would hold the job up next."""
    await world.broker.admin.pause("default")
    record = await world.record(await world.add())
    told = reasons(record, await facts_of(world.broker.admin, record, instant_of(world.clock.wall())))
    assert [reason.text for reason in told] == ["queue default is paused", "no worker is running"]
    assert all(isinstance(reason, Reason) and reason.cure for reason in told)


# --- the words: the place of a ready job, durations, times and cures ----------------------------------------------------


NOW = datetime(2026, 11, 28, tzinfo=UTC)
IDLE = SessionRecord(session=Session(id=b"s" * 16, name="one"), registered_at=NOW, seconds_since_beat=0.0, leases=0, is_dying=False)
READY = Record(id=b"j" * 16, job="work", queue="mail", status=Status.READY, created_at=NOW, due_at=NOW - timedelta(seconds=5))


@pytest.mark.parametrize(
    ("place", "others", "rate", "told"),
    [
        (0, 5, 10.0, "and is the next one in queue mail"),
        (1, 5, 10.0, "behind 1 other in queue mail; at the current rate its turn comes in about 0s"),
        (31, 500, 2.0, "behind 31 others in queue mail; at the current rate its turn comes in about 16s"),
        (31, 500, 0.0, "behind 31 others in queue mail; no job is being claimed"),
        (None, 50_000, 100.0, "behind at least 1,000 others in queue mail; at the current rate its turn comes in about 10s"),
        (None, 0, None, "and nothing is known to block it"),
    ],
)
def test_explain_shows_the_place_of_a_ready_job(place: int | None, others: int, rate: float | None, told: str) -> None:
    places = {number.to_bytes(16): number for number in range(min(others, 1_000))} | ({} if place is None else {READY.id: place})
    facts = Facts(now=NOW, counts={Status.READY: others + 1}, positions=places, workers=(IDLE,), rate=rate)
    [reason] = reasons(READY, facts)
    assert reason.text == f"it has been ready for 5s, {told}"


def test_a_pause_is_the_cause_and_more_workers_are_no_cure() -> None:
    """This holds beside busy workers and other jobs, and also for a job that is due later or has expired."""
    busy = msgspec.structs.replace(IDLE, leases=IDLE.session.concurrency)
    facts = Facts(now=NOW, is_paused=True, counts={Status.READY: 9}, positions={READY.id: 3}, workers=(busy,), rate=0.0)
    later = msgspec.structs.replace(READY, status=Status.SCHEDULED, due_at=NOW + timedelta(seconds=62))
    expired = msgspec.structs.replace(READY, status=Status.CANCELLED, reason="expired", ended_at=NOW)
    for record, place in ((READY, 0), (later, 1), (expired, 0)):
        found = reasons(record, facts)
        assert "queue mail is paused" in found[place].text
        assert found[place].cure.startswith("`taskflow resume mail` ends the pause")
        assert not any("workers" in reason.cure for reason in found)
    assert reasons(READY, facts)[1].text == "it has been ready for 5s, behind 3 others in queue mail"
    fair = msgspec.structs.replace(READY, fair=b"tenant")
    assert reasons(fair, facts)[1].text == "it has been ready for 5s, behind 3 others in queue mail, in which tenants take turns"
