"""Claims: which jobs they lease, in which order, and what they write."""

from __future__ import annotations

import pytest

from taskflow.broker.engine.records import READY, RUNNING, Kind
from taskflow.broker.engine.seam import Query, Record, Ref
from tests.seam.harness import SeamStore

LEASE = {"flags", "priority", "queue", "job", "created_at", "due_at", "expires_at", "epoch", "session", "claim"}
"""The fields that each answer to a claim has."""


async def claim(store: SeamStore, session: bytes, request: int, *queues: str, limit: int = 10) -> list[Record]:
    claimed = await store.claim(session, request, queues, limit)
    assert claimed is not None
    return claimed.records


async def claimed(store: SeamStore, session: bytes, request: int, *queues: str, limit: int = 10) -> list[Ref]:
    return [record.ref for record in await claim(store, session, request, *queues, limit=limit)]


async def test_claim_order__in_a_queue(store: SeamStore) -> None:
    """The highest priority first, then the earliest due time, then the lowest `seq`."""
    wanted = [(9, 5), (9, 5), (9, 7), (0, 1), (0, 2), (-3, 0)]
    jobs = {number: await store.job({"priority": wanted[number][0], "due_at": wanted[number][1]}) for number in (3, 5, 0, 2, 1, 4)}
    assert await claimed(store, await store.session(), 1, "default") == [jobs[number] for number in range(6)]


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


@pytest.mark.parametrize("queues", [(), ("paused", "default")])
async def test_claim_skips__paused_queues(store: SeamStore, queues: tuple[str, ...]) -> None:
    await store.job({"queue": "paused"})
    ref, pause = await store.job(), Ref(Kind.QUEUE, b"paused")
    await store.put(pause, {"is_paused": 1})
    session = await store.session()
    assert await claimed(store, session, 1, *queues) == [ref]
    await store.drop(pause)
    assert len(await claimed(store, session, 2, *queues)) == 1


async def test_claim_repeat__same_answer(store: SeamStore) -> None:
    """The same request gets the same leases in the same order, with their payloads, though other jobs are READY now.
    An older one finds nothing. Each lease counts once as the event `claim` of its queue.
    """
    for number in range(3):
        await store.job({"priority": number}, sent=b"s", content=bytes([number]))
    session = await store.session()
    first = await claim(store, session, 4, "default", limit=3)
    await store.job({"priority": 9})
    assert [record.content for record in first] == [b"\2", b"\1", b"\0"]
    assert await claim(store, session, 4, "default", limit=3) == first
    assert await claimed(store, session, 3, "default") == []
    assert (await store.perform(Query(with_totals=True))).totals == {("default", "claim"): 3}


@pytest.mark.parametrize("request_number", [1, 2])
async def test_claim_dead(store: SeamStore, request_number: int) -> None:
    """An unknown session gets None, and so does a dead one, also for the request that it made when it lived. No job is leased."""
    session, job = await store.session(), await store.job()
    await claim(store, session, 1, "nothing")
    await store.put(Ref(Kind.SESSION, session), {"dead_at": 5})
    assert await store.claim(session, request_number, ["default"]) is None
    assert await store.claim(b"unknown", request_number, ["default"]) is None
    assert (await store.header(job))["status"] == READY


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
