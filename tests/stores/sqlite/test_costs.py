"""What operations cost in statements and in calls of Python."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import msgspec
import pytest

from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.sqlite.transactions import QueuedVerb, Transactions
from taskflow.model.verdict import Settled
from tests.stores.jobs import an_envelope, envelopes, registered
from tests.support.verdicts import succeeded

MANY = 100


@pytest.mark.parametrize("number", [1, MANY])
async def test_a_claim_and_a_settlement_are_a_handful_of_statements(broker: SqliteBroker, said: list[str], number: int) -> None:
    """However many jobs are in them: beside a busy event loop each statement may cost a switch of threads."""
    session = await registered(broker)
    await broker.enqueue(envelopes(2 * number))
    await broker.settle([succeeded(lease) for lease in await broker.claim(session.id, 1, ["default"], number)])

    said.clear()
    leases = await broker.claim(session.id, 2, ["default"], number)
    assert len(leases) == number
    assert len(said) <= 7, said  # what is flushed, begin, the request, a look, the leases, the counts, commit

    said.clear()
    assert await broker.settle([succeeded(lease) for lease in leases]) == [Settled.OK] * number
    assert len(said) <= 6, said  # what is flushed, begin, a look, the jobs, the counts, commit


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
    bounds = [step for step in together if step in ("BEGIN IMMEDIATE", "COMMIT")]
    assert bounds in [["BEGIN IMMEDIATE", "COMMIT"] * times for times in (1, 2)]  # two, if the writer's thread was quicker than the claim
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

    async def whole_life(request: int, **fields: Any) -> list[str]:
        said.clear()
        await broker.enqueue([*envelopes(MANY, max_attempts=3, **fields), an_envelope(key=b"k" * 16, **fields)])
        leases = await broker.claim(session.id, request, ["default"], MANY + 1)
        await broker.settle([msgspec.structs.replace(succeeded(lease), keep_for=0.0) for lease in leases])
        assert (await broker.upkeep(1_000)).dropped == MANY + 1
        return [step for step in said if "taskflow_tags" in step]

    assert await whole_life(1) == []
    assert len(await whole_life(2, tags=("a", "b"))) <= 6  # the rows of a batch are cut into pieces


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Returns how many Python functions were called since it was asked last, in this thread and in transactions."""
    number, run, before = 0, Transactions.run, sys.getprofile()

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal number
        number += event == "call"

    def run_counted(self: Transactions, group: Sequence[QueuedVerb]) -> None:
        sys.setprofile(count)
        try:
            run(self, group)
        finally:
            sys.setprofile(None)

    def take() -> int:
        nonlocal number
        taken, number = number, 0
        return taken

    monkeypatch.setattr(Transactions, "run", run_counted)
    sys.setprofile(count)
    yield take
    sys.setprofile(before)


async def test_a_job_takes_few_calls_of_python(broker: SqliteBroker, calls: Callable[[], int]) -> None:
    """Rows are packed and unpacked many at a time."""
    session = await registered(broker)
    await broker.enqueue(envelopes(800))
    claiming, settling = list[int](), list[int]()
    for request, number in enumerate((100, 300, 100, 300), 1):  # SQLite compiles a statement at its first use
        calls()
        leases = await broker.claim(session.id, request, ["default"], number)
        claiming.append(calls())
        settlements = [succeeded(lease) for lease in leases]
        calls()
        assert await broker.settle(settlements) == [Settled.OK] * number
        settling.append(calls())
    assert (claiming[3] - claiming[2]) / 200 <= 5.1
    assert (settling[3] - settling[2]) / 200 <= 3.1


async def test_a_claim_from_many_queues_reads_those_that_it_takes_from(broker: SqliteBroker, said: list[str]) -> None:
    """All queues that give all that they have by one look, and the rest of the statements as for one queue."""
    session = await registered(broker)
    await broker.enqueue([an_envelope(queue=f"queue-{number % 500}") for number in range(1_000)])
    said.clear()
    leases = await broker.claim(session.id, 499, [], 10)
    names = ("99", "99", "0", "0", "1", "1", "10", "10", "100", "100")
    assert [lease.envelope.queue for lease in leases] == [f"queue-{name}" for name in names]
    assert len(said) <= 8 + 4, said


async def test_every_queue_has_its_turn_behind_those_whose_jobs_have_expired(broker: SqliteBroker) -> None:
    session = await registered(broker)
    await broker.enqueue([an_envelope(queue=f"empty-{number}", expires=0.0) for number in range(100)])
    for request in range(1, 204, 101):
        await broker.enqueue([an_envelope(queue="a-full-one"), an_envelope(queue="one-more")])
        leases = await broker.claim(session.id, request, [], 2)
        assert {lease.envelope.queue for lease in leases} == {"a-full-one", "one-more"}
