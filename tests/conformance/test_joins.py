"""Joins: a job that is held until others have ended."""

from __future__ import annotations

from typing import Any

import pytest

from taskflow.broker.admin import View
from taskflow.model.envelope import Envelope, OnConflict
from taskflow.model.record import Status
from tests.support.verdicts import SettlementOf, cancelled, discarded, failed, retried, succeeded
from tests.support.world import World, ids_of


async def _joined(world: World, *, members: int, **fields: Any) -> tuple[Envelope, list[Envelope]]:
    """Return a held job and as many others that count towards it."""
    held = world.an_envelope(awaits=members, queue="joined")
    joiners = [world.an_envelope(joins=(held.id,), **fields) for _ in range(members)]
    await world.enqueue(held, *joiners)
    return held, joiners


async def test_joins__released_by_the_last(world: World) -> None:
    """The job is HELD until the last of those that it awaits has ended, then READY, and is leased."""
    held, _ = await _joined(world, members=3)
    session = await world.a_session()
    for lease in await world.claim(session):
        assert await world.status(held) is Status.HELD
        await world.settle(succeeded(lease))

    assert await world.status(held) is Status.READY
    assert ids_of(await world.claim(session)) == [held.id]


@pytest.mark.parametrize("settlement", [succeeded, failed, discarded, cancelled])
async def test_joins__however_they_end(world: World, settlement: SettlementOf) -> None:
    """The jobs may end in success or not: the joined job finds out by itself."""
    held, _ = await _joined(world, members=1)
    [lease] = await world.claim(await world.a_session())
    await world.settle(settlement(lease))
    assert await world.status(held) is Status.READY


@pytest.mark.parametrize("end", ["cancelled", "expired", "purged", "replaced"])
async def test_joins__without_a_verdict(world: World, end: str) -> None:
    """A cancelled, expired, purged or replaced job counts as ended too."""
    held, [joiner] = await _joined(world, members=1, key="k", expires=100.0)
    match end:
        case "cancelled":
            await world.cancel(joiner)
        case "expired":
            await world.pass_time(100.0)
        case "purged":
            await world.broker.admin.purge(View(queue="default"))
        case _:
            await world.enqueue(world.an_envelope(key="k", on_conflict=OnConflict.REPLACE))
    assert await world.status(joiner) in (Status.CANCELLED, None)
    assert await world.status(held) is Status.READY


async def test_joins__not_by_a_retry(world: World) -> None:
    """A run that will be retried has not ended."""
    held, _ = await _joined(world, members=1)
    session = await world.a_session()
    [lease] = await world.claim(session)
    await world.settle(retried(lease))
    assert await world.status(held) is Status.HELD

    [lease] = await world.claim(session)
    await world.settle(failed(lease))

    assert await world.status(held) is Status.READY


async def test_joins__each_counts_once(world: World) -> None:
    """A settlement sent again, or a job that an operator retries and that ends again, counts no second time."""
    held, _ = await _joined(world, members=2)
    session = await world.a_session()
    first, second = await world.claim(session)
    await world.settle(failed(first))
    await world.settle(failed(first))
    await world.broker.admin.retry([first.envelope.id])
    [again] = await world.claim(session)
    await world.settle(succeeded(again))
    assert await world.status(held) is Status.HELD

    await world.settle(succeeded(second))

    assert await world.status(held) is Status.READY


async def test_joins__among_follow_ups(world: World) -> None:
    """A workflow grows by follow-ups: members and the job that awaits them may come with a settlement."""
    lease = await world.running()
    held = world.an_envelope(awaits=1, queue="joined")
    member = world.an_envelope(joins=(held.id,), queue="members")
    await world.settle(succeeded(lease, follow_ups=(held, member)))
    [lease] = await world.claim(await world.a_session(), ["members"])

    await world.settle(succeeded(lease))

    assert await world.status(held) is Status.READY


async def test_joins__with_a_wait_of_its_own(world: World) -> None:
    """A joined job with its own time still waits for it when the others have ended before."""
    held = await world.add(awaits=1, after=60.0)
    joiner = await world.add(joins=(held.id,))

    await world.cancel(joiner)

    assert await world.status(held) is Status.SCHEDULED
    await world.pass_time(60.0)
    assert await world.status(held) is Status.READY
