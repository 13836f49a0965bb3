"""Workers' counts, and the history that they record."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskflow import Worker, configure, operate
from taskflow.broker.memory import MemoryBroker
from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.measures import MAX_COUNT, MAX_DEPLOYS, MAX_PAIRS, OTHER, Measure, sum_of, unpack_measures
from taskflow.model.verdict import Completed, Failed, HandedBack, Retried, RunError, Settled, Settlement, Succeeded, Verdict
from taskflow.telemetry import History
from taskflow.worker.events import BrokerCallFailed, VerdictIgnored
from taskflow.worker.lease_table import HeldLease
from taskflow.worker.measuring import WorkerMeasures
from tests.telemetry.jobs import add, fails

ERROR = RunError("ValueError", "no")
PAIR = ("default", "mail")


def a_lease(job: str = "mail", waited: int = 0) -> Lease:
    return Lease(envelope=Envelope(id=bytes(16), job=job, payload=b""), epoch=1, claim=ClaimId(b"", 1, 1), created_at=0, waited=waited)


def count(measures: WorkerMeasures, verdict: Verdict, answer: Settled = Settled.OK, *, ran_for: float = 0.0, **of: Any) -> None:
    lease = a_lease(**of)
    settlement = Settlement(id=lease.envelope.id, epoch=1, claim=lease.claim, verdict=verdict, ran_for=ran_for)
    measures.settled([HeldLease(lease)], [settlement], [answer])


def a_worker(*, records: bool = False) -> WorkerMeasures:
    return WorkerMeasures(lambda: (3, 7, 0.5), records=records)


def test_runs_are_counted_by_outcome_and_by_how_long_they_took() -> None:
    measures = a_worker()
    count(measures, Succeeded(b""), ran_for=0.001, waited=1_000)
    count(measures, Succeeded(b""), ran_for=3.0, waited=-5)
    count(measures, Retried(ERROR), ran_for=1e9)
    count(measures, HandedBack())
    count(measures, Completed(Failed(ERROR)), Settled.COMMITTED)
    count(measures, Completed(Failed(ERROR)), Settled.OK)

    [(pair, measure)] = unpack_measures(measures.facts().measures).items()
    assert pair == PAIR
    assert measure == Measure(
        runs={"succeeded": 3, "retried": 1, "handed_back": 1, "failed": 1},
        waits={10: 1, 0: 5},
        times={10: 1, 22: 1, 42: 1, 0: 3},
        waited=1_000,
        ran=1_000 + 3_000_000 + 10**15,
    )


@pytest.mark.parametrize("answer", [Settled.STALE, Settled.HELD_UP])
def test_runs_that_the_store_has_not_settled_are_not_counted(answer: Settled) -> None:
    measures = a_worker()
    count(measures, Succeeded(b""), answer)
    assert unpack_measures(measures.facts().measures) == {}


def test_labels_are_bounded() -> None:
    measures = a_worker()
    for number in range(MAX_PAIRS + 10):
        count(measures, Succeeded(b""), job=f"job {number}")
    found = unpack_measures(measures.facts().measures)
    assert len(found) == MAX_PAIRS + 1
    assert found[OTHER].runs == {"succeeded": 10}


def test_facts_of_workers_are_added_up() -> None:
    one, two = a_worker(), a_worker()
    for measures in (one, two):
        count(measures, Succeeded(b""))
        measures.on_event(BrokerCallFailed("claiming", "no answer", 1))
        measures.on_event(VerdictIgnored(a_lease(), Succeeded(b"")))
    both = one.facts().plus(two.facts())
    assert unpack_measures(both.measures)[PAIR].runs == {"succeeded": 2}
    assert (both.broker_errors, both.leases_lost, both.busy, both.free, both.loop_lag) == ({"claiming": 2}, 2, 6, 14, 0.5)
    assert (both.ended().busy, both.ended().leases_lost) == (0, 2)


# --- the history ------------------------------------------------------------------------------------------------


class _Store:
    """Records what a worker sends, or fails."""

    def __init__(self) -> None:
        self.records = list[tuple[bytes, bytes]]()
        self.error: Exception | None = None
        self.admin = self

    async def record_measures(self, record_id: bytes, measures: bytes) -> None:
        self.records.append((record_id, measures))
        if self.error is not None:
            raise self.error


async def test_a_worker_records_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = _Store()
    now = time.monotonic()
    monkeypatch.setattr("taskflow.worker.measuring.time.monotonic", lambda: now)
    measures = a_worker(records=True)
    for _ in range(10):
        count(measures, Succeeded(b""))
        now += 25.0
        await measures.record(store, b"s")
    assert [unpack_measures(packed)[PAIR].runs["succeeded"] for _, packed in store.records] == [3, 3, 3]
    assert len({record_id for record_id, _ in store.records}) == 3
    assert unpack_measures(measures.facts().measures)[PAIR].runs == {"succeeded": 10}
    await measures.record(store, b"s", at_once=True)
    assert unpack_measures(store.records[-1][1])[PAIR].runs == {"succeeded": 1}
    await measures.record(store, b"s", at_once=True)
    assert len(store.records) == 4  # nothing is recorded of a worker without runs


async def test_a_record_names_the_deploy() -> None:
    """The worker's metrics do not: it has only one deploy."""
    store: Any = _Store()
    measures = WorkerMeasures(lambda: (0, 0, 0.0), records=True, deploy="v2")
    for _ in range(3):
        count(measures, Succeeded(b""))
    await measures.record(store, b"s", at_once=True)
    assert unpack_measures(store.records[0][1])[PAIR].deploys == {"v2": 3}
    assert unpack_measures(measures.facts().measures)[PAIR].deploys == {}


def test_few_deploys_are_counted_apart() -> None:
    total = sum_of([{PAIR: Measure(deploys={f"v{number % 30}": 1})} for number in range(60)])
    assert total[PAIR].deploys == {f"v{number}": 2 for number in range(MAX_DEPLOYS)}


@pytest.mark.parametrize("error", [BrokerUnavailable("it is away"), RuntimeError("a bug")], ids=["away", "a bug"])
async def test_a_record_is_sent_again_under_its_id_and_given_up_after_a_minute(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """After a minute, the store may have added it up already, so another one would count twice. An error would end the session."""
    store: Any = _Store()
    store.error = error
    now = time.monotonic()
    monkeypatch.setattr("taskflow.worker.measuring.time.monotonic", lambda: now)
    measures = a_worker(records=True)
    count(measures, Succeeded(b""))
    now += 60.0
    for _ in range(5):
        await measures.record(store, b"s")
        now += 20.0
    assert len(store.records) == 3
    assert len(set(store.records)) == 1
    assert measures.facts().broker_errors == {"recording the history": 3}
    store.error = None
    count(measures, Succeeded(b""))
    await measures.record(store, b"s", at_once=True)
    assert len(store.records) == 4


async def test_impossible_times_of_jobs_stop_no_record() -> None:
    """Another program may have written their due times."""
    store: Any = _Store()
    measures = a_worker(records=True)
    for _ in range(3):
        count(measures, Succeeded(b""), waited=1 << 63)
    await measures.record(store, b"s", at_once=True)
    assert unpack_measures(store.records[0][1])[PAIR].waited == unpack_measures(measures.facts().measures)[PAIR].waited == MAX_COUNT


async def test_a_worker_leaves_its_counts(memory_broker: MemoryBroker) -> None:
    configure(telemetry=[History()])
    async with Worker() as worker:
        for number in range(3):
            await add.delay(number, 1)
        await fails.delay()
        await worker.drained()
    now = datetime.now(UTC)
    found = await operate.history(since=now - timedelta(minutes=5))
    assert [each.seconds for each in found] == [60] * len(found)
    total = {job: sum((record.measures[queue, job].runs.get(outcome, 0)) for record in found if (queue, job) in record.measures)
             for queue, job, outcome in [("default", add.name, "succeeded"), ("default", fails.name, "failed")]}  # fmt: skip
    assert total == {add.name: 3, fails.name: 1}
    assert await operate.history(since=now - timedelta(days=2), until=now - timedelta(days=1)) == []
    with pytest.raises(ValueError, match="is naive"):
        await operate.history(since=now.replace(tzinfo=None))


async def test_without_telemetry_nothing_is_counted(memory_broker: MemoryBroker) -> None:
    async with Worker() as worker:
        await add.delay(1, 2)
        await worker.drained()
        assert worker._measures is None
    assert await operate.history() == []
