"""Claims: which jobs they lease, in which order, and what they write."""

from __future__ import annotations

import pytest

from taskflow.broker.engine.records import READY, RUNNING, Kind
from taskflow.broker.engine.seam import After, Query, Record, Ref
from tests.seam.harness import SeamStore

LEASE = {"flags", "priority", "queue", "job", "created_at", "due_at", "expires_at", "epoch", "session", "claim"}
"""The fields that each answer to a claim has."""


async def claim(store: SeamStore, session: bytes, request: int, *queues: str, limit: int = 10) -> list[Record]:
    claimed = await store.claim(session, request, queues, limit)
    assert claimed is not None
    return claimed.records


async def claimed(store: SeamStore, session: bytes, request: int, *queues: str, limit: int = 10) -> list[Ref]:
    return [record.ref for record in await claim(store, session, request, *queues, limit=limit)]


# --- order ----------------------------------------------------------------------------------------------------


async def test_claim_order__in_a_queue(store: SeamStore) -> None:
    """The highest priority first, then the earliest due time, then the lowest `seq`."""
    wanted = [(9, 5), (9, 5), (9, 7), (0, 1), (0, 2), (-3, 0)]
    jobs = {number: await store.job({"priority": wanted[number][0], "due_at": wanted[number][1]}) for number in (3, 5, 0, 2, 1, 4)}

    assert await claimed(store, await store.session(), 1, "default") == [jobs[number] for number in range(6)]


async def test_claim_order__of_the_queues(store: SeamStore) -> None:
    """The queues count in the order that the caller gives, before any priority. A queue that is named twice counts once."""
    jobs = {queue: await store.job({"queue": queue, "priority": priority}) for queue, priority in (("a", 0), ("b", 9), ("c", 5))}

    assert await claimed(store, await store.session(), 1, "c", "a", "c", "nothing", "b") == [jobs["c"], jobs["a"], jobs["b"]]


async def test_claim_order__up_to_the_limit(store: SeamStore) -> None:
    """A claim takes no more than the limit, the first in order, and the next one goes on behind them."""
    jobs = [await store.job({"queue": queue}) for queue in ("a", "a", "b", "b")]
    session = await store.session()

    taken = [await claimed(store, session, request, "a", "b", limit=3) for request in (1, 2, 3)]

    assert taken == [jobs[:3], jobs[3:], []]


async def test_claim_turns__each_queue_in_turn(store: SeamStore) -> None:
    """Without queues, every queue with READY jobs is taken, and each is first equally often as the requests rise."""
    queues = ("a", "b", "c")
    for queue in queues:
        for _ in range(4):
            await store.job({"queue": queue})
    session = await store.session()

    firsts = [(await store.header(ref))["queue"] for request in range(1, 7) for ref in await claimed(store, session, request, limit=1)]
    rest = await claimed(store, session, 7)

    assert {queue: firsts.count(queue) for queue in queues} == {"a": 2, "b": 2, "c": 2}
    assert len(rest) == 6


# --- what it passes over --------------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", [(), ("paused", "default")])
async def test_claim_skips__paused_queues(store: SeamStore, queues: tuple[str, ...]) -> None:
    await store.job({"queue": "paused"})
    ref, pause = await store.job(), Ref(Kind.QUEUE, b"paused")
    await store.put(pause, {"is_paused": 1})
    session = await store.session()

    assert await claimed(store, session, 1, *queues) == [ref]
    await store.drop(pause)
    assert len(await claimed(store, session, 2, *queues)) == 1


@pytest.mark.parametrize("queues", [(), ("default",)])
async def test_claim_skips__expired_jobs(store: SeamStore, queues: tuple[str, ...]) -> None:
    """An expired job is passed over, also if more than the limit stand before the first that has not expired."""
    for _ in range(5):
        await store.job({"priority": 9, "expires_at": After(1_000_000)})
    lasting = [await store.job({"expires_at": After(60_000_000)}), await store.job()]
    store.advance(1)

    assert await claimed(store, await store.session(), 1, *queues, limit=2) == lasting


# --- requests -------------------------------------------------------------------------------------------------


async def test_claim_repeat__same_answer(store: SeamStore) -> None:
    """The same request gets the same leases in the same order, with their payloads, though other jobs are READY now."""
    for number in range(3):
        await store.job({"priority": number}, sent=b"s", content=bytes([number]))
    session = await store.session()
    first = await claim(store, session, 4, "default", limit=3)
    await store.job({"priority": 9})

    assert [record.content for record in first] == [b"\2", b"\1", b"\0"]
    assert await claim(store, session, 4, "default", limit=3) == first


async def test_claim_repeat__less_what_it_no_longer_holds(store: SeamStore) -> None:
    """A lease that has ended is not given again, nor is one of the same job under another request."""
    for _ in range(3):
        await store.job()
    session = await store.session()
    first, second, third = await claimed(store, session, 1, "default")
    await store.put(first, {"status": READY, "session": None, "claim": None})
    await store.drop(second)

    assert await claimed(store, session, 1, "default") == [third]
    assert await claimed(store, session, 2, "default") == [first]
    assert await claimed(store, session, 2, "default") == [first]


async def test_claim_repeat__nothing(store: SeamStore) -> None:
    """A request that found nothing finds nothing when it is repeated. An older one finds nothing either."""
    session = await store.session()
    assert await claimed(store, session, 3, "default") == []
    await store.job()

    assert await claimed(store, session, 3, "default") == []
    assert await claimed(store, session, 2, "default") == []
    assert len(await claimed(store, session, 4, "default")) == 1


@pytest.mark.parametrize("request_number", [1, 2])
async def test_claim_dead(store: SeamStore, request_number: int) -> None:
    """An unknown session gets None, and so does a dead one, also for the request that it made when it lived. No job is leased."""
    session, job = await store.session(), await store.job()
    await claim(store, session, 1, "nothing")
    await store.put(Ref(Kind.SESSION, session), {"dead_at": 5})

    assert await store.claim(session, request_number, ["default"]) is None
    assert await store.claim(b"unknown", request_number, ["default"]) is None
    assert (await store.header(job))["status"] == READY


# --- what it writes -------------------------------------------------------------------------------------------


async def test_claim_writes__fields(store: SeamStore) -> None:
    """A claim makes the job RUNNING with the next epoch, names session, claim, times and worker, and clears `started_at`."""
    session = await store.session({"name": "host:77"})
    refs = [await store.job({"priority": priority, "epoch": 6, "started_at": 5, "settled": b"f"}, state=b"s") for priority in (3, 2)]
    before = [await store.found(ref) for ref in refs]
    store.advance(5)
    early = await store.perform(Query())
    claimed = await store.claim(session, 2**40, ["default"], 10)
    late = await store.perform(Query())

    assert claimed is not None
    assert early.now <= claimed.now <= late.now
    for number, (record, was) in enumerate(zip(claimed.records, before, strict=True)):
        stored = await store.found(record.ref)
        header = stored.header
        assert header == was.header | {
            "status": RUNNING,
            "epoch": 7,
            "session": session,
            "claim": (2**40).to_bytes(8, "big") + number.to_bytes(4, "big"),
            "worker": "host:77",
            "started_at": None,
            "claimed_at": header["claimed_at"],
            "claimed_steady": header["claimed_steady"],
        }
        assert early.now <= header["claimed_at"] <= late.now
        assert early.steady <= header["claimed_steady"] <= late.steady
        assert {name: header[name] for name in record.header} == record.header
        assert record.header.keys() >= LEASE
        assert record._replace(header=header) == stored
        assert (record.ref, record.state) == (was.ref, b"s")


async def test_claim_writes__counts(store: SeamStore) -> None:
    """Each lease counts as the event `claim` of its queue, once however often the request is repeated."""
    for queue in ("a", "a", "b"):
        await store.job({"queue": queue})
    session = await store.session()

    for _ in range(2):
        await claim(store, session, 1)

    totals = (await store.perform(Query(with_totals=True))).totals
    assert {name: n for name, n in totals.items() if n} == {("a", "claim"): 2, ("b", "claim"): 1}
