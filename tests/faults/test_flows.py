"""Flows whose senders are killed, and large ones whose members end at once."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from taskflow.broker.engine.flows import CARRY_OUT_TIMEOUT
from taskflow.broker.protocol import Broker
from taskflow.model.clock import Seams
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.flow import Member
from taskflow.model.record import Status
from taskflow.model.rules import Rules
from taskflow.model.session import Session
from taskflow.model.verdict import Settled
from tests.support.flows import a_flow
from tests.support.harnesses import BROKERS, Capability, StoreHarness
from tests.support.verdicts import succeeded
from tests.support.world import World

ROOT: Final = Path(__file__).parents[2]
SHARED: Final = [harness for harness in BROKERS if Capability.SHARING not in harness.lacks]
KILLS: Final = 6
MEMBERS: Final = 10_000
AT_ONCE: Final = 100

_SEND: Final = """
import asyncio, sys
from taskflow.model.clock import SystemClock
from taskflow.model.envelope import Envelope
from taskflow.model.flow import Member
from tests.support.child import broker_at

async def main(place, flow):
    broker = broker_at(place, SystemClock())
    await broker.enqueue([Envelope(id=bytes(16), job="x", payload=b"")])
    places = [Member(flow, n, 0, 2_999) for n in range(3_000)]
    members = [Envelope(id=flow[:12] + each.number.to_bytes(4, "big"), job="x", payload=b"p", awaits=1, member=each) for each in places]
    print("sending", flush=True)
    await broker.enqueue(members)
    print("sent", flush=True)
    await asyncio.sleep(60)  # until it is killed

asyncio.run(main(sys.argv[1], bytes.fromhex(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARED, ids=lambda harness: harness.name)
async def test_a_flow_is_there_as_a_whole_or_not_at_all(kind: type[StoreHarness]) -> None:
    """Its sender is killed somewhere between its first byte and the answer."""
    harness, dice = kind(Seams(), Rules()), random.Random(7)
    broker = harness.open()
    found, took = list[int](), 0.0
    for nth in range(1 + KILLS):
        flow = dice.randbytes(16)
        command = [sys.executable, "-c", _SEND, harness.place, flow.hex()]
        sender = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        assert sender.stdout is not None
        assert await sender.stdout.readline() == b"sending\n"
        began = time.monotonic()
        if nth == 0:  # the first one may end: it tells how long the others have
            assert await sender.stdout.readline() == b"sent\n"
            took = time.monotonic() - began
        await asyncio.sleep(dice.uniform(0.0, took) if nth else 0.0)
        sender.kill()
        await sender.wait()
        await asyncio.sleep(1.0)  # a server may still apply what has reached it
        found.append(len(await broker.admin.flow(flow, limit=MEMBERS)))
    await broker.close()
    harness.remove()
    assert found[0] == 3_000
    assert set(found) <= {0, 3_000}, found


_ACT: Final = """
import asyncio, sys
from taskflow.model.clock import SystemClock
from tests.support.child import broker_at

async def main(place, action, target):
    admin = broker_at(place, SystemClock()).admin
    await (admin.cancel_flow(target) if action == "cancel" else admin.retry([target]))

asyncio.run(main(*sys.argv[1:3], bytes.fromhex(sys.argv[3])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("action", ["cancel", "retry"])
@pytest.mark.parametrize("kind", SHARED, ids=lambda harness: harness.name)
async def test_upkeep_finishes_an_action_of_a_killed_process(kind: type[StoreHarness], action: str) -> None:
    """The process is killed when it has cancelled or restored the first jobs of a flow of ten thousand."""
    harness = kind(Seams(), Rules())
    broker = harness.open()
    flow_id = random.Random(8).randbytes(16)
    jobs = [
        Envelope(id=flow_id[:12] + n.to_bytes(4, "big"), job="x", payload=b"", member=Member(flow_id, n, 0, 9_999)) for n in range(MEMBERS)
    ]
    await broker.enqueue(jobs)
    target, ends_as, begins_with = flow_id, Status.CANCELLED, MEMBERS - 1
    if action == "retry":
        await broker.cancel([jobs[0].id])
        await _until_rested(broker)
        target, ends_as, begins_with = jobs[0].id, Status.READY, 1
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _ACT, harness.place, action, target.hex(), cwd=ROOT)
    while [record.status for record in await broker.admin.flow(flow_id, first=begins_with, limit=1)] != [ends_as]:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    process.kill()
    await process.wait()
    was_cut_off = {record.status for record in await broker.admin.flow(flow_id, limit=MEMBERS)} != {ends_as}
    await asyncio.sleep(CARRY_OUT_TIMEOUT / 1e6)  # until then, upkeep leaves the action to that process
    await _until_rested(broker)
    statuses = {record.status for record in await broker.admin.flow(flow_id, limit=MEMBERS)}
    await broker.close()
    harness.remove()
    assert (was_cut_off, statuses) == (True, {ends_as})


async def _until_rested(broker: Broker) -> None:
    while not (await broker.upkeep(1_000)).next_in:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARED, ids=lambda harness: harness.name)
async def test_ten_thousand_ends_at_once_on_two_workers(kind: type[StoreHarness]) -> None:
    """The join is released once, with all results."""
    async with World(kind) as world:
        flow = a_flow(world, members=MEMBERS - 1)
        assert flow.join is not None
        began = time.monotonic()
        await world.enqueue(*flow.envelopes)
        brokers = [world.broker, world.broker.sibling()]
        sessions = [await world.a_session(), await world.a_session()]
        leases = [await _claimed(world, session) for session in sessions]
        halves = [[lease for found in leases for lease in found][at::2] for at in range(2)]
        answers = await asyncio.gather(*(_settle(broker, half) for broker, half in zip(brokers, halves, strict=True)))
        assert sum(answers) == MEMBERS - 1
        await world.upkeep()
        await brokers[1].close()

        [join] = await world.claim(sessions[0], ["join"])
        assert join.envelope.id == flow.join.id
        number, first = 0, 0
        while True:
            page = await world.broker.notes(join.envelope.id, first)
            number += len(page.notes)
            if page.next is None:
                break
            first = page.next
        assert number == MEMBERS - 1
        await world.settle(succeeded(join))
        assert await world.status(flow.join) is Status.SUCCEEDED
        assert time.monotonic() - began < 120


async def _claimed(world: World, session: Session) -> list[Lease]:
    found = list[Lease]()
    while len(found) < MEMBERS // 2 and (leases := await world.claim(session, ["0"], 1_000)):
        found += leases
    return found


async def _settle(broker: Broker, leases: list[Lease]) -> int:
    """Settle in batches, several of which are under way at a time, and return how many took effect."""
    batches = [leases[at : at + AT_ONCE] for at in range(0, len(leases), AT_ONCE)]
    settled = 0
    for at in range(0, len(batches), 4):
        calls = [broker.settle([succeeded(lease) for lease in batch]) for batch in batches[at : at + 4]]
        for answers in await asyncio.gather(*calls):
            settled += answers.count(Settled.OK)
    return settled
