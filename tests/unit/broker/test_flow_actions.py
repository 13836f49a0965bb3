"""Actions on flows that several clients carry on at once, and records that no taskflow could have written."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest

from taskflow.app.bulk_actions import ActionResult, CallBrokerOnce, act, apply_in_portions
from taskflow.broker.admin import View
from taskflow.broker.engine import admin
from taskflow.broker.engine.flows import CANCEL, CANCEL_AWAITING, CARRY_OUT_TIMEOUT, FORGET, Action
from taskflow.broker.engine.job import Sent, encode
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import ABSENT, Applied, Apply, Operation, Put, Query, Ref, Scan, Snapshot, Step
from taskflow.broker.memory import MemoryBroker
from taskflow.model.flow import MAX_MEMBERS, Member, numbered
from taskflow.model.record import Status
from tests.support.flows import Flow, sent
from tests.support.harnesses import MemoryHarness
from tests.support.verdicts import failed
from tests.support.world import World, ids_of

COUNTING = 2
"""The queries in which a client that cancels a flow of 700 jobs counts them."""

HELD, READY, FAILED, CANCELLED = Status.HELD, Status.READY, Status.FAILED, Status.CANCELLED


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World(MemoryHarness) as opened:
        yield opened


async def _statuses(world: World, flow: Flow) -> list[Status | None]:
    return [None if record is None else record.status for record in await world.broker.read(ids_of(flow.envelopes))]


class _Client:
    """Runs an operation step by step."""

    def __init__(self, world: World, operation: Operation[Any]) -> None:
        assert isinstance(world.broker, MemoryBroker)
        self._store, self._operation, self._answer = world.broker._store, operation, None
        self.result: Any = None

    def go_on(self, effects: int) -> None:
        try:
            for _ in range(effects):
                self._answer = self._store.perform(self._operation.send(self._answer))
        except StopIteration as end:
            self.result = end.value


async def test_a_client_does_not_drop_an_action_that_another_one_has_begun_again(world: World) -> None:
    """It has passed the jobs that an operator has retried since, and which the other client is to cancel."""
    flow = await sent(world, members=700)
    first, second = (_Client(world, admin.cancel_flow(flow.id, world.rules)) for _ in range(2))
    first.go_on(COUNTING + 5)  # up to its second portion
    cancelled = [record.id for record in await world.broker.admin.flow(flow.id) if record.status is CANCELLED]
    assert 0 < len(cancelled) < 700
    await world.broker.admin.retry(cancelled[:100])
    second.go_on(COUNTING + 2)  # the second client has begun the action again
    first.go_on(100)
    assert READY in await _statuses(world, flow)
    second.go_on(100)

    assert {*await _statuses(world, flow)} == {CANCELLED}


async def test_a_job_that_a_worker_claims_meanwhile_holds_up_no_other(world: World) -> None:
    """The portion, which was one step, is decided again in a step for each job."""
    flow = await sent(world, members=700)
    client = _Client(world, admin.cancel_flow(flow.id, world.rules))
    client.go_on(COUNTING + 3)  # it has read the first portion
    [lease] = await world.claim(await world.a_session(), ["0"], 1)
    client.go_on(5)  # the first portion twice, then the second

    statuses = dict(zip(ids_of(flow.envelopes), await _statuses(world, flow), strict=True))
    assert statuses.pop(lease.envelope.id) is Status.RUNNING
    assert {*statuses.values()} == {CANCELLED}


async def test_a_cancel_begins_with_the_jobs_that_workers_reach_last(world: World) -> None:
    """Claims begin with the first jobs, so the two seldom meet."""
    flow = await sent(world, members=700)
    client = _Client(world, admin.cancel_flow(flow.id, world.rules))
    client.go_on(COUNTING + 4)  # it has cancelled the first portion

    statuses = await _statuses(world, flow)
    assert {*statuses[:201]} == {READY}
    assert {*statuses[201:]} == {CANCELLED}


async def test_a_cancel_counts_jobs_that_upkeep_cancels(world: World) -> None:
    """If the client is slow, a worker's upkeep carries the action out. Before, it leaves the action to the client."""
    flow = await sent(world, members=700)
    client = _Client(world, admin.cancel_flow(flow.id, world.rules))
    client.go_on(COUNTING + 2)  # the action is stored
    assert 0.0 < (await world.upkeep()).next_in <= CARRY_OUT_TIMEOUT / 1e6
    assert CANCELLED not in await _statuses(world, flow)
    await world.pass_time(CARRY_OUT_TIMEOUT / 1e6)
    await world.upkeep()
    assert {*await _statuses(world, flow)} == {CANCELLED}
    client.go_on(100)

    assert client.result == len(flow.envelopes)


def _counting(world: World, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return the numbers of queries, and of the records and entries that the store loads for them, from now on."""
    assert isinstance(world.broker, MemoryBroker)
    store, counts = world.broker._store, Counter[str]()
    query = store.query

    def counting(asked: Query) -> Snapshot:
        seen = query(asked)
        counts.update(queries=1, loads=len(seen.records) + sum(map(len, seen.scans)))
        return seen

    monkeypatch.setattr(store, "query", counting)
    return counts


async def _by_id(world: World, failures: Sequence[bytes]) -> ActionResult:
    *_, answers = [answers async for answers in apply_in_portions(CallBrokerOnce(world.broker), "retry", failures)]
    return ActionResult.of(answers)


async def _by_status(world: World, _: Sequence[bytes]) -> ActionResult:
    *_before, result = [result async for result in act(CallBrokerOnce(world.broker), "retry", View(statuses=(FAILED,)))]
    return result


@pytest.mark.parametrize("how", [_by_id, _by_status])
@pytest.mark.parametrize("collects", [True, False], ids=["a-failure-a-branch", "one-failure"])
async def test_the_cost_of_a_retry_is_in_proportion_to_the_flow(
    monkeypatch: pytest.MonkeyPatch, collects: bool, how: Callable[[World, Sequence[bytes]], Awaitable[ActionResult]]
) -> None:
    """The flow is examined once, however many of its jobs are retried."""
    monkeypatch.setattr("taskflow.app.bulk_actions.PAGE", 50)
    costs = list[Counter[str]]()
    for members in (700, 1_400):
        async with World(MemoryHarness) as world:
            flow, session = await sent(world, members=members, length=2, collects=collects), await world.a_session()
            leases = await world.claim(session, ["0"], members if collects else 1)
            await world.settle(*map(failed, leases))
            counts = _counting(world, monkeypatch)
            assert (await how(world, ids_of(leases))).changed == len(leases)
            costs.append(counts.copy())
            assert {*await _statuses(world, flow)} == {READY, HELD}
    small, large = costs
    assert all(large[name] < 2.2 * small[name] for name in ("queries", "loads")), costs


async def _put(world: World, ref: Ref, **parts: Any) -> None:
    def operation() -> Operation[None]:
        seen: Snapshot = yield Query((ref,))
        known = seen.records[ref]
        [answer], _ = yield Apply([Step({ref: ABSENT if known is None else known.rev}, (Put(ref, {}, **parts),))])
        assert answer == Applied()

    await world.broker.run(operation())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "action",
    [
        Action(CANCEL_AWAITING, b"", 0, 1 << 40),
        Action(FORGET, b"", 0, 1 << 40),
        Action(CANCEL, b"\0" * 16, 0, MAX_MEMBERS),
        Action(9, b"f" * 16),
        Action(CANCEL_AWAITING, b"f" * 16, -1, 5),
    ],
)
async def test_an_action_that_no_client_could_have_stored_does_nothing(world: World, action: Action) -> None:
    """It is dropped, and no other flow is affected."""
    flow = await sent(world)
    await _put(world, Ref(Kind.FLOW, numbered(b"f" * 16, 3)), state=msgspec.msgpack.encode(action))
    while (await world.upkeep()).next_in == 0.0:
        pass

    assert await _statuses(world, flow) == [READY, READY, HELD]

    def left() -> Operation[int]:
        seen: Snapshot = yield Query(scans=(Scan("flows", 1),))
        return len(seen.scans[0])

    assert await world.broker.run(left()) == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        encode(Sent(member=Member(b"f", 0, 0, 2))),
        encode(Sent(member=Member(b"f" * 16, 0, 0, 2, "x", is_list=True, inputs=1 << 50))),
        encode(Sent(member=Member(b"f" * 16, 0, 0, 1 << 50))),
    ],
)
async def test_a_job_whose_place_in_its_flow_is_unreadable_fells_the_flow(world: World, body: bytes) -> None:
    """It ends FAILED without a run, as other unreadable jobs do. No job waits for it for ever."""
    flow = await sent(world)
    await _put(world, Ref(Kind.JOB, flow.firsts[0].id), sent=body)
    session = await world.a_session()
    [lease] = await world.claim(session, ["0"], 1)
    assert [each.column for each in lease.unreadable] == ["sent"]
    await world.settle(failed(lease))

    assert await _statuses(world, flow) == [FAILED, CANCELLED, CANCELLED]
