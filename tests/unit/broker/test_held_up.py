"""Jobs that another program's open transaction locks are left for later, and hold up nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import Answer, Apply, Locked, Snapshot
from taskflow.broker.memory.store import MemoryStore
from taskflow.model.record import Status
from taskflow.model.verdict import Settled
from tests.support.flows import sent
from tests.support.harnesses import MemoryHarness
from tests.support.verdicts import succeeded
from tests.support.world import World


class LockedStore(MemoryStore):
    """Answers like a store in which another program has locked the rows of jobs."""

    locked: frozenset[bytes] = frozenset()

    def apply(self, apply: Apply) -> tuple[list[Answer], Snapshot | None]:
        held = [tuple(ref for ref in step.expect if ref.kind == Kind.JOB and ref.id in self.locked) for step in apply.steps]
        free = [step for step, refs in zip(apply.steps, held, strict=True) if not refs]
        answers, seen = super().apply(apply._replace(steps=free))
        given = iter(answers)
        return [Locked(refs) if refs else next(given) for refs in held], seen


class LockedHarness(MemoryHarness):
    def __init__(self, seams: Any, rules: Any, capacity: int | None = None) -> None:
        super().__init__(seams, rules, capacity)
        self._store: LockedStore = LockedStore(seams.clock, capacity)

    def lock(self, *ids: bytes) -> None:
        self._store.locked = frozenset(ids)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World(LockedHarness) as opened:
        yield opened


def _lock(world: World, *ids: bytes) -> None:
    assert isinstance(world.harness, LockedHarness)
    world.harness.lock(*ids)


async def test_dead_sessions_with_locked_jobs_keep_no_other_one_waiting(world: World) -> None:
    """They died first, and are more than one call of upkeep releases."""
    held_up = [await world.running(await world.a_session(f"w{number}")) for number in range(17)]
    last = await world.a_session("last")
    lease = await world.running(last)
    _lock(world, *(each.envelope.id for each in held_up))
    for _ in range(2):
        world.clock.advance(12.0)
        await world.beat(last, lease)
    upkept = await world.upkeep()
    assert (upkept.reaped, upkept.released) == (17, 0)
    assert upkept.next_in > 0.0
    await world.lapse(last)

    assert (await world.upkeep()).released == 1

    assert await world.status(lease) is Status.READY
    _lock(world)
    while (await world.upkeep()).next_in == 0.0:
        pass
    assert {await world.status(each) for each in held_up} == {Status.READY}


async def test_a_locked_job_that_awaits_others_fails_no_settlement(world: World) -> None:
    """The end of the last one that it awaits is written. The next upkeep releases the job."""
    held = await world.add(awaits=1)
    lease = await world.running(joins=(held.id,))
    _lock(world, held.id)

    assert await world.settle(succeeded(lease)) == [Settled.OK]
    assert await world.status(held) is Status.HELD

    _lock(world)
    await world.upkeep()
    assert await world.status(held) is Status.READY


async def test_a_locked_job_of_a_flow_is_cancelled_once_it_is_free(world: World) -> None:
    """It is in the first of several portions. Until then, upkeep checks it now and then, but not all the time."""
    flow = await sent(world, members=1_200)
    _lock(world, flow.firsts[5].id)
    await world.broker.admin.cancel_flow(flow.id)
    assert [await world.status(flow.firsts[number]) for number in (5, 6)] == [Status.READY, Status.CANCELLED]
    assert (await world.upkeep()).next_in > 0.0

    _lock(world)
    await world.upkeep()
    assert await world.status(flow.firsts[5]) is Status.CANCELLED
