"""How the engine handles the records that a caller's transaction has left: see `engine/arrivals.py`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from taskflow.broker.engine.job import Job, fence_bytes, text_bytes
from taskflow.broker.engine.records import HELD, RUNNING, SUCCEEDED, Flag, Kind
from taskflow.broker.engine.seam import ABSENT, NOW, Applied, Apply, Operation, Put, Query, Ref, Snapshot, Step
from taskflow.broker.memory import MemoryBroker
from taskflow.model import wording
from taskflow.model.clock import ManualClock, Seams
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.ids import IdFactory, id_text
from taskflow.model.record import Record, Status
from taskflow.model.session import Beat, Session
from taskflow.model.stored_values import packed
from tests.support.verdicts import failed

KEY = b"k" * 16
SESSION = Session(id=b"s" * 16, name="host:1")

new_id = IdFactory()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def broker(clock: ManualClock) -> MemoryBroker:
    broker = MemoryBroker(seams=Seams(clock=clock))
    await broker.register(SESSION)
    return broker


def an_envelope(key: bytes | None = KEY, **fields: Any) -> Envelope:
    return Envelope(id=new_id(), job="work", payload=b"\x01", key=key, **fields)


def arrive(broker: MemoryBroker, *envelopes: Envelope, replaced: Mapping[bytes, bytes] = MappingProxyType({})) -> None:
    """Add jobs with a key as a committed transaction does."""

    def operation() -> Operation[None]:
        now = (yield Query()).now
        jobs = [Job.of_envelope(envelope, now) for envelope in envelopes]
        for job, envelope in zip(jobs, envelopes, strict=True):
            job.header |= {"status": HELD, "flags": job.header["flags"] | Flag.ARRIVING | Flag.BEHIND}
            job.state.replaces, job.state.waiting = envelope.on_conflict is OnConflict.REPLACE, text_bytes(wording.ARRIVES)
            job.state.replaced = replaced.get(envelope.id)
        answers, _ = yield Apply([Step({job.ref: ABSENT}, (job.to_put(),)) for job in jobs])
        assert answers == [Applied()] * len(jobs)

    broker.perform(operation())


async def running(broker: MemoryBroker, request: int, *envelopes: Envelope) -> Lease:
    await broker.enqueue(envelopes)
    [lease] = await broker.claim(SESSION.id, request, [], 1)
    return lease


def complete(broker: MemoryBroker, lease: Lease, progress: bytes = b"") -> None:
    """End a run as a committed transaction does."""

    def operation() -> Operation[None]:
        ref, inbox = Ref(Kind.JOB, lease.envelope.id), Ref(Kind.INBOX, lease.envelope.id)
        seen: Snapshot = yield Query((ref,))
        job = seen.records[ref]
        assert job is not None
        assert job.header["status"] == RUNNING
        settled = fence_bytes(lease.epoch, job.header["session"], job.header["claim"], is_committed=True)
        ended = {"status": SUCCEEDED, "session": None, "claim": None, "settled": settled, "ended_at": NOW, "fade_at": seen.now + 10**9}
        ended["flags"] = job.header["flags"] & ~Flag.AWAITED
        left = Put(inbox, {}, job.header["flags"].to_bytes(2, "big") + progress, job.sent)
        yield Apply([Step({ref: job.rev, inbox: ABSENT}, (Put(ref, ended, content=b"\x01result"), left))])

    broker.perform(operation())


async def records(broker: MemoryBroker, *envelopes: Envelope) -> list[Record]:
    found = await broker.read([envelope.id for envelope in envelopes])
    return [record for record in found if record is not None]


async def statuses(broker: MemoryBroker, *envelopes: Envelope) -> list[Status]:
    return [record.status for record in await records(broker, *envelopes)]


# --- jobs with a key ----------------------------------------------------------------------------------------------


async def test_an_arrival_that_its_own_transaction_has_replaced(broker: MemoryBroker) -> None:
    """It never gets the key, however the job in its place ends."""
    standing, first, second = an_envelope(), an_envelope(), an_envelope(on_conflict=OnConflict.REPLACE)
    await broker.enqueue([standing])
    arrive(broker, first, second, replaced={first.id: second.id})
    await broker.upkeep(1)
    await broker.upkeep(100)

    assert [record.reason for record in await records(broker, standing, first)] == [f"replaced by {id_text(second.id)}"] * 2
    assert await statuses(broker, second) == [Status.READY]


async def test_an_arrival_that_was_cancelled_is_not_admitted(broker: MemoryBroker) -> None:
    new = an_envelope(on_conflict=OnConflict.REPLACE)
    arrive(broker, new)
    await broker.cancel([new.id])
    await broker.upkeep(100)

    assert await statuses(broker, new) == [Status.CANCELLED]
    assert await broker.holders([KEY]) == [None]
    await broker.admin.retry([new.id])
    assert await statuses(broker, new) == [Status.READY]


async def test_an_arrival_is_counted_as_ready_and_calls_for_upkeep_at_once(broker: MemoryBroker) -> None:
    """`--drain` and autoscalers read the counts. Without a worker nothing admits it."""
    await broker.upkeep(100)
    arrive(broker, an_envelope(), an_envelope())
    [queue] = await broker.admin.queues()
    assert (queue.counts[Status.READY], queue.counts[Status.HELD]) == (2, 0)
    assert queue.oldest_ready_for == 0
    work_hint = (await broker.beat(Beat(session=SESSION.id, looks=True))).work_hint
    assert work_hint is not None
    assert (work_hint.is_ready, work_hint.due_in) == (False, 0.0)

    assert (await broker.upkeep(1)).next_in == 0.0
    assert (await broker.upkeep(10)).next_in > 0.0
    assert (await broker.admin.queues())[0].counts[Status.READY] == 1


# --- ends of runs -------------------------------------------------------------------------------------------------


async def test_an_end_frees_the_key_and_releases_waiting_jobs(broker: MemoryBroker) -> None:
    tied = an_envelope(None, awaits=1)
    lease = await running(broker, 1, an_envelope(joins=(tied.id,)), tied)
    behind = an_envelope(on_conflict=OnConflict.REPLACE)
    await broker.enqueue([behind])
    complete(broker, lease, progress=packed([0.5, ""]))

    assert await statuses(broker, behind, tied) == [Status.HELD, Status.HELD]
    assert (await broker.upkeep(100)).next_in > 0

    assert await statuses(broker, behind, tied) == [Status.READY, Status.READY]
    assert await broker.holders([KEY]) == [behind.id]
    [record] = await records(broker, lease.envelope)
    assert (record.status, record.result, record.progress and record.progress.fraction) == (Status.SUCCEEDED, b"\x01result", 0.5)


async def test_an_end_takes_effect_though_its_job_was_dropped(broker: MemoryBroker) -> None:
    tied = an_envelope(None, awaits=1)
    lease = await running(broker, 1, an_envelope(joins=(tied.id,)), tied)
    behind = an_envelope(on_conflict=OnConflict.REPLACE)
    await broker.enqueue([behind])
    complete(broker, lease)
    await broker.admin.drop([lease.envelope.id])
    assert await broker.read([lease.envelope.id]) == [None]

    await broker.upkeep(100)
    assert await statuses(broker, behind, tied) == [Status.READY, Status.READY]


async def test_an_end_and_an_arrival_for_its_key_need_one_call(broker: MemoryBroker) -> None:
    """The end is handled first, although the arrival is older."""
    lease = await running(broker, 1, an_envelope())
    new = an_envelope()
    arrive(broker, new)
    complete(broker, lease)
    await broker.upkeep(100)

    assert await statuses(broker, new) == [Status.READY]
    assert await broker.holders([KEY]) == [new.id]


async def test_an_end_leaves_a_key_that_another_job_has_since_got(broker: MemoryBroker) -> None:
    lease = await running(broker, 1, an_envelope())
    complete(broker, lease)
    new = an_envelope()
    await broker.enqueue([new])
    await broker.upkeep(100)

    assert await broker.holders([KEY]) == [new.id]


async def test_an_end_does_not_release_joined_jobs_twice(broker: MemoryBroker) -> None:
    """The job's first end has released them. An operator has then retried it."""
    tied = an_envelope(None, awaits=2)
    lease = await running(broker, 1, an_envelope(joins=(tied.id,)), tied)
    await broker.settle([failed(lease)])
    await broker.admin.retry([lease.envelope.id])
    [lease] = await broker.claim(SESSION.id, 2, [], 1)
    complete(broker, lease)
    await broker.upkeep(100)

    assert await statuses(broker, tied) == [Status.HELD]
