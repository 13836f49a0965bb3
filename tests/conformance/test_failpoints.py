"""The failpoint matrix: whichever operation loses its reply, or kills or delays its process, no job is lost and none is settled twice."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from taskflow.model.clock import Seams
from taskflow.model.envelope import Lease
from taskflow.model.record import Record, Status
from taskflow.model.rules import Rules
from taskflow.model.session import Beat
from taskflow.model.transitions import Event
from taskflow.model.verdict import Settled
from tests.support import child
from tests.support.failpoints import Action, FailingBroker, Failpoint, When
from tests.support.fileclock import FileClock
from tests.support.forks import run_in_fork
from tests.support.harnesses import BROKERS, Capability, StoreHarness
from tests.support.waiting import until
from tests.support.world import World

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]

VERBS = ("register", "enqueue", "claim", "beat", "settle", "upkeep")
POINTS = [(verb, when, 1) for verb, when in itertools.product(VERBS, When)] + [("settle", when, 2) for when in When]
ROOT = Path(__file__).parents[2]

SHARED = [harness for harness in BROKERS if Capability.SHARING not in harness.lacks]


def named(point: Failpoint) -> str:
    return f"{point.verb}-{point.when}-{point.number}"


# --- lost replies ---------------------------------------------------------------------------------------------------------


@pytest.mark.each_store
@pytest.mark.parametrize("point", [Failpoint(*point, Action.RAISE) for point in POINTS], ids=named)
async def test_a_lost_reply_and_a_resend_are_as_if_nothing_had_been(world: World, point: Failpoint) -> None:
    """Each operation is sent again after BrokerUnavailable, whether it took effect or not: every job is added once and ends once."""
    broker, said = FailingBroker(world.broker, point), list[str]()

    await child.work(broker.as_broker, said.append)

    assert broker.is_reached
    assert said[-1] == "done"
    records = await world.broker.read(_all_ids())
    assert [record and (record.status, record.epoch, record.crashes) for record in records] == [(Status.SUCCEEDED, 1, 0)] * len(records)
    assert (await world.broker.admin.metrics()).totals["default"] == {
        Event.ENQUEUE: len(records),
        Event.CLAIM: len(records),
        Event.SUCCEED: len(records),
    }
    assert not [line for line in said if line.endswith("stale")]


def _all_ids() -> list[bytes]:
    return [job.id for envelope in child.envelopes() for job in (envelope, child.follow_up(envelope))]


# --- a killed process, and one held up --------------------------------------------------------------------------------------


class Survivor:
    """The other process on the same store, which is this one. It takes over the jobs that the child leaves."""

    def __init__(self, harness: StoreHarness, clock: FileClock) -> None:
        self.harness = harness
        self.broker = harness.open()
        self._clock = clock
        self._session = child.a_session("survivor")
        self._requests = itertools.count(1)
        self.settled: list[bytes] = []

    async def start(self) -> None:
        await self.broker.register(self._session)

    async def take_over(self) -> None:
        """Send heartbeats while the other process lapses, then do all that there is to do."""
        for _ in range(3):
            self._clock.advance(child.TTL * 0.6)
            await self.broker.beat(Beat(session=self._session.id))
        while (await self.broker.upkeep(3)).next_in == 0.0 or await self._work():
            pass

    async def _work(self) -> bool:
        leases: list[Lease] = await self.broker.claim(self._session.id, next(self._requests), (), 3)
        answers = await self.broker.settle([child.settled_with_follow_up(lease) for lease in leases])
        assert answers == [Settled.OK] * len(leases)
        self.settled += [lease.envelope.id for lease in leases]
        return bool(leases)

    async def records(self) -> list[Record]:
        return [record for record in await self.broker.read(_all_ids()) if record is not None]


@pytest.fixture(params=SHARED, ids=lambda harness: harness.name)
async def survivor(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Survivor]:
    clock = FileClock(tmp_path / "clock")
    harness: StoreHarness = request.param(Seams(clock), Rules())
    survivor = Survivor(harness, clock)
    await survivor.start()
    yield survivor
    await survivor.broker.close()
    harness.remove()
    clock.close()


def _program(survivor: Survivor, folder: Path, point: Failpoint) -> str:
    arguments = (survivor.harness.place, str(folder / "clock"), str(point))
    return f"import asyncio\nfrom tests.support import child\nasyncio.run(child.main{arguments})"


@pytest.mark.parametrize("point", [Failpoint(*point, Action.KILL) for point in POINTS], ids=named)
async def test_a_killed_process_loses_nothing(tmp_path: Path, survivor: Survivor, point: Failpoint) -> None:
    """After SIGKILL at each operation, jobs whose enqueue was answered are there, leased ones run again, and settled ones do not."""
    code, said = run_in_fork(_program(survivor, tmp_path, point), ROOT, os.environ)
    assert code == -signal.SIGKILL, said
    await until(survivor.harness.is_at_rest)

    await survivor.take_over()

    await _check_the_ledger(survivor, said.splitlines())


_THROUGH_PIPES = "import sys\nsys.stdout, sys.stdin = open({!r}, 'w'), open({!r})\n"


@pytest.mark.parametrize("point", [Failpoint(*point, Action.PAUSE) for point in POINTS if point[1] is not When.DURING], ids=named)
async def test_a_process_held_up_settles_nothing_twice(tmp_path: Path, survivor: Survivor, point: Failpoint) -> None:
    """It stops at each operation until it was reaped and another process did its work; then it goes on, and does no harm."""
    pipes = [tmp_path / "said", tmp_path / "told"]
    for pipe in pipes:
        os.mkfifo(pipe)
    program = _THROUGH_PIPES.format(*map(str, pipes)) + _program(survivor, tmp_path, point)
    running = asyncio.create_task(asyncio.to_thread(run_in_fork, program, ROOT, os.environ))
    await asyncio.sleep(0)
    with pipes[0].open() as heard, pipes[1].open("w") as tell:
        said = list(iter(heard.readline, "paused\n"))
        await survivor.take_over()
        tell.write("go on\n")
        tell.flush()
        said += heard
    assert await running == (0, "")
    await survivor.take_over()

    said = [line.strip() for line in said]
    assert said[-1] == ("done" if point.verb == "register" and point.when is When.BEFORE else "lost")
    await _check_the_ledger(survivor, said)


async def _check_the_ledger(survivor: Survivor, said: list[str]) -> None:
    added = {bytes.fromhex(line.split()[1]) for line in said if line.startswith("added")}
    by_child = {bytes.fromhex(line.split()[1]) for line in said if line.startswith("settled") and line.endswith("ok")}
    records = await survivor.records()
    there = {record.id for record in records}
    assert added <= there, "an acknowledged job is lost"
    assert {record.status for record in records} <= {Status.SUCCEEDED}, "a job is stuck"
    assert all(child.follow_up(envelope).id in there for envelope in child.envelopes() if envelope.id in there), "a follow-up is lost"
    assert len(survivor.settled) == len(set(survivor.settled))
    assert by_child.isdisjoint(survivor.settled), "a job was settled twice"
    totals = (await survivor.broker.admin.metrics()).totals.get("default", {})
    counted = (totals.get(Event.ENQUEUE, 0), totals.get(Event.SUCCEED, 0))
    assert counted == (len(there), len(there)), "a job was added or settled more than once"
    assert all(record.epoch == 1 + len(record.errors) for record in records), "a job ran again that no worker was lost with"
