"""Tags: a job keeps them, an operator finds jobs by them, and no entry outlives its job."""

from __future__ import annotations

from typing import Any

import pytest

from taskflow.broker.admin import Redone, View
from taskflow.broker.paging import pages
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.record import Status
from tests.support.listing import listed
from tests.support.verdicts import SettlementOf, cancelled, discarded, failed, retried, snoozed, succeeded
from tests.support.world import World, ids_of

LONG = 1_000_000.0
TAGS = ("import:42", "tenant/7", "x" * 100)


async def _found(world: World, tag: str, **fields: Any) -> list[bytes]:
    return [record.id for record in await listed(world.broker.admin, View(tag=tag, **fields))]


@pytest.mark.parametrize(
    "fields", [{}, {"after": 60.0}, {"key": "k"}, {"awaits": 1}, {"expires": 9.0}, {"headers": {"\N{INVERTED EXCLAMATION MARK}g": "a"}}]
)
async def test_tags_kept(world: World, fields: dict[str, Any]) -> None:
    """A job of any kind is found by each of its tags, and its record shows them in the order in which they were sent."""
    envelope = await world.add(tags=TAGS, **fields)

    assert (await world.record(envelope)).tags == TAGS
    for tag in TAGS:
        assert await _found(world, tag) == [envelope.id]


async def test_tags_kept__by_runs_and_retries(world: World) -> None:
    """The lease has the tags. They outlive retries, snoozes, a crash, the end, and an operator's retry."""
    session = await world.a_session(ttl=LONG)
    lease = await world.running(session, tags=TAGS, max_attempts=3)
    assert lease.envelope.tags == TAGS
    for settle in (retried, snoozed):
        await world.settle(settle(lease, after=0.0))
        [lease] = await world.claim(session)
        assert lease.envelope.tags == TAGS
    await world.die(session)
    assert await _found(world, "tenant/7") == [lease.envelope.id]
    session = await world.a_session("other", ttl=LONG)
    [lease] = await world.claim(session)
    await world.settle(failed(lease))
    assert await _found(world, "tenant/7", statuses=(Status.FAILED,)) == [lease.envelope.id]

    assert await world.broker.admin.retry([lease.envelope.id]) == [Redone.OK]

    assert await _found(world, "tenant/7", statuses=(Status.READY,)) == [lease.envelope.id]
    assert [each.envelope.tags for each in await world.claim(session)] == [TAGS]


async def test_tags_dropped(world: World) -> None:
    """A job without tags has no entry."""
    await world.add()
    await world.add(key="k", headers={"a": "b"}, max_attempts=2)
    assert world.harness.tagged() == set()


@pytest.mark.parametrize("settle", [succeeded, failed, discarded, cancelled])
async def test_tags_dropped__with_the_record(world: World, settle: SettlementOf) -> None:
    """When the record is dropped, because its time is over, its entries are dropped."""
    world = world.under(keep_failed=20.0, keep_cancelled=20.0)
    lease = await world.running(tags=TAGS)
    other = await world.add(tags=("import:42",))
    await world.settle(settle(lease, **({"keep_for": 20.0} if settle is succeeded else {})))
    assert len(world.harness.tagged()) == 4

    await world.pass_time(30.0)

    assert await world.read(lease) is None
    assert world.harness.tagged() == {("import:42", other.id)}


@pytest.mark.parametrize("settle", [succeeded, failed])
async def test_tags_dropped__over_the_cap(world: World, settle: SettlementOf) -> None:
    """Jobs that their queue no longer keeps leave no entries."""
    world = world.under(kept_per_queue=1)
    session = await world.a_session(ttl=LONG)
    leases = list[Lease]()
    for _ in range(3):
        leases.append(await world.running(session, queue="q", tags=("a",)))
        await world.settle(settle(leases[-1]))
        world.clock.advance(1.0)

    await world.upkeep()

    assert world.harness.tagged() == {("a", leases[-1].envelope.id)}


async def test_tags_dropped__by_a_purge(world: World) -> None:
    """A purge drops the entries of ended and of waiting jobs, of any kind."""
    ended = await world.running(tags=("a", "b"))
    await world.settle(succeeded(ended))
    await world.add(tags=("a",), queue="other")
    for fields in ({}, {"after": 60.0}, {"key": "k"}, {"awaits": 1}):
        await world.add(tags=("b",), **fields)

    assert await world.broker.admin.purge(View()) == 6

    assert world.harness.tagged() == set()


async def _jobs(world: World) -> list[Envelope]:
    """Add twelve jobs, of which every third has the tag "a", every fourth "b". Two with "a" have failed."""
    session = await world.a_session(ttl=LONG)
    jobs = list[Envelope]()
    for n in range(12):
        tags = (*(["a"] if n % 3 == 0 else []), *(["b"] if n % 4 == 0 else []))
        if n in (3, 9):
            lease = await world.running(session, tags=tags)
            await world.settle(failed(lease))
            jobs.append(lease.envelope)
        else:
            jobs.append(await world.add(tags=tags, queue="mail" if n == 6 else "default"))
        world.clock.advance(1.0)
    return jobs


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tag": "a"}, [9, 6, 3, 0]),
        ({"tag": "b"}, [8, 4, 0]),
        ({"tag": "nobody"}, []),
        ({"tag": "A"}, []),
        ({"tag": "a", "statuses": (Status.FAILED,)}, [9, 3]),
        ({"tag": "a", "statuses": (Status.READY, Status.SUCCEEDED)}, [6, 0]),
        ({"tag": "a", "queue": "mail"}, [6]),
        ({"tag": "a", "job": "work", "ended_before": 5.0}, [3]),
        ({"tag": "b", "statuses": (Status.FAILED,)}, []),
        ({"tag": "a", "poison": True}, []),
    ],
)
async def test_page_tag(world: World, fields: dict[str, Any], expected: list[int]) -> None:
    """The page lists, newest first, the tagged jobs that the other parts of the filter admit too."""
    jobs = await _jobs(world)
    records = [record async for page in pages(world.broker.admin, View(**fields), 1) for record in page]
    assert [record.id for record in records] == ids_of([jobs[index] for index in expected])
    assert records == await world.broker.read([record.id for record in records])
    assert (await world.broker.admin.page(View(**fields))).records == records


async def test_admin_purge_tag(world: World) -> None:
    """Only jobs with the tag are purged, and of them only those that the rest of the filter admits."""
    jobs = await _jobs(world)

    assert await world.broker.admin.purge(View(tag="a", statuses=(Status.FAILED,))) == 2
    assert await world.broker.admin.purge(View(tag="nobody")) == 0
    assert await world.broker.admin.purge(View(tag="a"), limit=1) == 1
    assert await world.broker.admin.purge(View(tag="a")) == 1
    assert await world.broker.admin.purge(View(tag="a")) == 0

    assert [await world.status(job) for job in jobs[::3]] == [None] * 4
    assert [await world.status(job) for job in jobs[1::3]] == [Status.READY] * 4
