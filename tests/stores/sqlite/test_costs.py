"""What claims and settlements cost in statements, and leases that another connection takes away."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import msgspec
import pytest

from taskflow.broker.admin import QueueRecord
from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.sqlite.transactions import QueuedVerb, Transactions
from taskflow.model.record import Status
from taskflow.model.verdict import Settled
from tests.stores.sqlite.support import an_envelope, envelopes, registered, succeeded

MANY = 100


def counted(queue: QueueRecord) -> dict[Status, int]:
    return {status: number for status, number in queue.counts.items() if number}


@pytest.mark.parametrize("number", [1, MANY])
async def test_a_claim_and_a_settlement_are_a_handful_of_statements(broker: SqliteBroker, said: list[str], number: int) -> None:
    """However many jobs are in them: beside a busy event loop each statement may cost a switch of threads."""
    session = await registered(broker)
    await broker.enqueue(envelopes(2 * number))
    await broker.settle([succeeded(lease) for lease in await broker.claim(session.id, 1, ["default"], number)])

    said.clear()
    leases = await broker.claim(session.id, 2, ["default"], number)
    assert len(leases) == number
    # What is flushed, begin, the request, a look, the leases, the counts, commit.
    assert len(said) <= 7, said

    said.clear()
    assert await broker.settle([succeeded(lease) for lease in leases]) == [Settled.OK] * number
    # What is flushed, begin, a look, the jobs, the counts, commit.
    assert len(said) <= 6, said


@pytest.mark.parametrize("queues", [[], ["default"]], ids=["of every queue", "of one queue"])
async def test_a_claim_and_a_settlement_that_wait_together_share_a_transaction(
    broker: SqliteBroker, said: list[str], queues: list[str]
) -> None:
    """One commit, one flush, and each count written once."""
    session = await registered(broker)
    await broker.enqueue(envelopes(2 * MANY))
    leases = await broker.claim(session.id, 1, queues, MANY)

    said.clear()
    settled, claimed = await asyncio.gather(
        broker.settle([succeeded(lease) for lease in leases]), broker.claim(session.id, 2, queues, MANY)
    )
    assert (settled, len(claimed)) == ([Settled.OK] * MANY, MANY)
    together = said[:]
    assert [step for step in together if step in ("BEGIN IMMEDIATE", "COMMIT")] in (
        ["BEGIN IMMEDIATE", "COMMIT"],
        ["BEGIN IMMEDIATE", "COMMIT"] * 2,  # the writer's thread was quicker than the second operation
    )
    assert len(together) <= 16, together  # each is in a savepoint


async def test_an_enqueue_of_a_thousand_is_a_dozen_statements(broker: SqliteBroker, said: list[str]) -> None:
    await broker.enqueue([an_envelope()])
    said.clear()
    await broker.enqueue(envelopes(1_000))
    assert len(said) <= 16, said
    assert said.count("COMMIT") == 1


async def test_jobs_without_tags_cost_no_statement_for_tags(broker: SqliteBroker, said: list[str]) -> None:
    """From enqueue to drop, also beside a job that has some. A batch of tagged jobs takes a few more when it is added and dropped."""
    session = await registered(broker)
    await broker.enqueue([an_envelope(tags=("a", "b"), after=3_600.0)])

    async def whole_life(**fields: Any) -> list[str]:
        said.clear()
        await broker.enqueue([*envelopes(MANY, max_attempts=3, **fields), an_envelope(key=b"k" * 16, **fields)])
        leases = await broker.claim(session.id, next(requests), ["default"], MANY + 1)
        await broker.settle([msgspec.structs.replace(succeeded(lease), keep_for=0.0) for lease in leases])
        assert (await broker.upkeep(1_000)).dropped == MANY + 1
        return [step for step in said if "taskflow_tags" in step]

    requests = iter((1, 2))
    assert await whole_life() == []
    assert len(await whole_life(tags=("a", "b"))) <= 6  # the rows of a batch are cut into pieces


class Calls:
    """Counts calls of Python functions, in this thread and in transactions."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        self.number += event == "call"

    def take(self) -> int:
        number, self.number = self.number, 0
        return number


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    counted, run = Calls(), Transactions.run

    def run_counted(self: Transactions, group: Sequence[QueuedVerb]) -> None:
        before = sys.getprofile()
        sys.setprofile(counted)
        try:
            run(self, group)
        finally:
            sys.setprofile(before)

    monkeypatch.setattr(Transactions, "run", run_counted)
    before = sys.getprofile()
    sys.setprofile(counted)
    yield counted
    sys.setprofile(before)


async def test_a_job_takes_few_calls_of_python(broker: SqliteBroker, calls: Calls) -> None:
    """Rows are packed and unpacked many at a time."""
    session = await registered(broker)
    await broker.enqueue(envelopes(800))
    claiming, settling = list[int](), list[int]()
    for request, number in enumerate((100, 300, 100, 300), 1):  # SQLite compiles a statement at its first use
        calls.take()
        leases = await broker.claim(session.id, request, ["default"], number)
        claiming.append(calls.take())
        settlements = [succeeded(lease) for lease in leases]
        calls.take()
        assert await broker.settle(settlements) == [Settled.OK] * number
        settling.append(calls.take())
    assert (claiming[3] - claiming[2]) / 200 <= 5.1
    assert (settling[3] - settling[2]) / 200 <= 3.1


# --- leases of others ---------------------------------------------------------------------------------------------------


async def test_a_claim_from_many_queues_reads_those_that_it_takes_from(broker: SqliteBroker, said: list[str]) -> None:
    """All queues that give all that they have by one look, and the rest of the statements as for one queue."""
    session = await registered(broker)
    await broker.enqueue([an_envelope(queue=f"queue-{number % 500}") for number in range(1_000)])
    said.clear()
    leases = await broker.claim(session.id, 499, [], 10)
    assert [lease.envelope.queue for lease in leases] == [
        f"queue-{name}" for name in ("99", "99", "0", "0", "1", "1", "10", "10", "100", "100")
    ]
    assert len(said) <= 8 + 4, said


async def test_every_queue_has_its_turn_however_many_there_are(broker: SqliteBroker) -> None:
    """All are looked into when those before them give nothing: their jobs have expired, and nobody has cleared them away yet."""
    session = await registered(broker)
    await broker.enqueue([an_envelope(queue=f"empty-{number}", expires=0.0) for number in range(100)])
    await broker.enqueue([an_envelope(queue="a-full-one"), an_envelope(queue="one-more")])
    for request in range(1, 204, 101):
        leases = await broker.claim(session.id, request, [], 2)
        assert {lease.envelope.queue for lease in leases} == {"a-full-one", "one-more"}
        await broker.enqueue([an_envelope(queue="a-full-one"), an_envelope(queue="one-more")])
