"""Concurrent delays of one loop share round trips, without a timer, and a lone one does not wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest

from taskflow import BrokerUnavailable, JobHandle, Status, StoreFull, configure
from taskflow.app.loop_client import BLOCKED_GRACE, MAX_BYTES, Coalescer, retry_within
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add, blob
from tests.unit.app.watched import Watched, settle_down


@pytest.fixture
def watched(bench: Bench) -> Iterator[Watched]:
    watched = Watched(bench.broker)
    with bench.app.using(watched.as_broker):
        yield watched


async def under_way(awaitable: Awaitable[Any]) -> asyncio.Task[Any]:
    """Return a task that has run until it has to wait."""
    task = asyncio.ensure_future(awaitable)
    assert isinstance(task, asyncio.Task)
    await settle_down()
    return task


# --- sharing --------------------------------------------------------------------------------------------------------


async def test_calls_that_arrive_during_a_round_trip_share_the_next_one(watched: Watched) -> None:
    watched.gate.clear()
    first = await under_way(add.delay(0))
    others = [await under_way(add.delay(n)) for n in range(20)]
    assert watched.calls["enqueue"] == 1
    watched.gate.set()
    await asyncio.gather(first, *others)
    assert [len(batch) for batch in watched.batches] == [1, 20]


async def test_a_batch_is_of_one_mebibyte(watched: Watched) -> None:
    """A payload that exceeds the remaining room waits for the next batch; none is too large to go alone."""
    await asyncio.gather(*(blob.delay(bytes(size)) for size in (500_000, 500_000, 500_000, 1_000_000, 10)))
    assert [len(batch) for batch in watched.batches] == [2, 1, 2]
    assert all(sum(len(envelope.payload) for envelope in batch) <= MAX_BYTES for batch in watched.batches)


# --- keys -----------------------------------------------------------------------------------------------------------


async def test_keyed_ones_have_a_lane_of_their_own_sorted_by_key(watched: Watched) -> None:
    """Two senders that take the same locks in one order do not block each other for ever."""
    plain = [add.delay(n) for n in range(10)]
    keyed = [add.options(key=f"key {n}").delay(n) for n in range(10)]
    handles = await asyncio.gather(*plain, *keyed)

    [without, within] = sorted(watched.batches, key=lambda batch: batch[0].key is not None)
    assert [envelope.key for envelope in without] == [None] * 10
    assert [envelope.key for envelope in within] == sorted(envelope.key or b"" for envelope in within)
    assert [handle.id for handle in handles[10:]] != [JobHandle(add.app, e.id, add).id for e in within], "they were sorted indeed"
    assert all(handle.is_new for handle in handles)


async def test_a_key_that_is_held_up_does_not_hold_up_plain_ones(watched: Watched) -> None:
    """Another program's open transaction may hold the key, for example."""
    watched.is_held_up = lambda envelopes: any(envelope.key is not None for envelope in envelopes)
    watched.gate.clear()
    keyed = await under_way(add.options(key="k").delay(1))
    async with asyncio.timeout(30):
        await asyncio.gather(*(add.delay(n) for n in range(10)))
    assert not keyed.done()
    watched.gate.set()
    assert (await keyed).is_new


# --- cancelled ------------------------------------------------------------------------------------------------------


async def test_a_cancelled_question_may_have_been_sent_and_affects_no_other(watched: Watched) -> None:
    watched.gate.clear()
    first, second = await under_way(add.delay(1)), await under_way(add.delay(2))
    third = await under_way(add.delay(3))
    first.cancel()
    second.cancel()
    await settle_down()
    watched.gate.set()
    assert await (await third).status() is Status.READY
    assert first.cancelled()
    assert second.cancelled()
    assert [len(batch) for batch in watched.batches] == [1, 1], "the first went out, the second was still waiting to"


async def test_a_flush_that_a_stranger_cancels_asks_again_for_those_who_still_wait() -> None:
    """A job that cancels every task but its own does this."""
    gate = asyncio.Event()

    async def store(questions: list[int]) -> list[int]:
        await gate.wait()
        return questions

    ask = Coalescer[int, int](store, timeout=10.0)
    for _ in range(2):
        gate.clear()
        under_way = ask(1)
        await settle_down()
        waiting = ask(2)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await settle_down()
        gate.set()
        assert [await asyncio.wait_for(answer, 10) for answer in (under_way, waiting)] == [1, 2]


# --- trouble --------------------------------------------------------------------------------------------------------


async def test_a_store_that_stays_away_is_given_up(watched: Watched, bench: Bench) -> None:
    configure(enqueue_timeout=0.1)
    watched.is_away = True
    with pytest.raises(BrokerUnavailable, match=r"not answered for 0.1 s: the store is away; .*enqueue_timeout="):
        await add.delay(1)
    assert watched.calls["enqueue"] > 1, "it was tried again"


async def test_a_newcomer_is_not_given_up_with_the_old_ones(watched: Watched) -> None:
    """It has its own timeout: the store comes back after the old one's timeout has ended."""
    configure(enqueue_timeout=2.0)
    watched.is_away = True
    old = await under_way(add.delay(1))
    await asyncio.sleep(1.0)
    new = await under_way(add.delay(2))
    with pytest.raises(BrokerUnavailable):
        await old
    watched.is_away = False
    assert (await new).is_new


async def test_a_full_store_is_reported_at_once(bench: Bench) -> None:
    class Full(Watched):
        async def enqueue(self, envelopes: Any) -> Any:
            self.calls["enqueue"] += 1
            raise StoreFull("no room")

    full = Full(bench.broker)
    with bench.app.using(full.as_broker), pytest.raises(StoreFull, match="no room"):
        await add.delay(1)
    assert full.calls["enqueue"] == 1


@pytest.mark.parametrize("askers", [1, 3])
async def test_a_store_with_too_few_answers_leaves_no_caller_waiting(askers: int) -> None:
    async def short(questions: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return questions[:-1]

    ask = Coalescer[int, int](short, timeout=10.0)
    for _ in range(2):
        answers = await asyncio.wait_for(asyncio.gather(*map(ask, range(askers)), return_exceptions=True), 10)
        assert answers[:-1] == list(range(askers - 1))
        assert isinstance(answers[-1], ValueError)


async def test_a_question_asked_while_a_call_begins_waits_for_that_call() -> None:
    """There is one call at a time, whichever task sends it: the deadline is for one."""
    nested: list[asyncio.Future[int]] = []
    at_once, most = 0, 0

    async def store(questions: list[int]) -> list[int]:
        nonlocal at_once, most
        if len(nested) < 64:
            nested.extend(ask(-1) for _ in range(32))
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.001)
        at_once -= 1
        return questions

    ask = Coalescer[int, int](store, timeout=10.0)
    await asyncio.gather(*map(ask, range(32)))
    assert set(await asyncio.gather(*nested)) == {-1}
    assert most == 1


def test_a_loop_that_ends_cancels_waiting_callers() -> None:
    """asyncio.run cancels every task: a caller that waits for an answer is cancelled, and does not hang."""

    async def never(questions: list[int]) -> list[int]:
        await asyncio.Event().wait()
        return questions

    ends: list[str] = []

    async def waits(ask: Coalescer[int, int], n: int) -> None:
        try:
            await ask(n)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    async def main() -> None:
        ask = Coalescer[int, int](never, timeout=60.0)
        tasks = [asyncio.ensure_future(waits(ask, n)) for n in range(2)]
        await settle_down()
        tasks.append(asyncio.ensure_future(waits(ask, 2)))
        await settle_down()

    asyncio.run(main())
    assert ends == ["cancelled"] * 3


# --- retries of one operation -----------------------------------------------------------------------------------------------


async def test_an_answer_that_came_while_the_loop_stood_still_counts() -> None:
    """The timeout passed while the loop could not receive the answer: the operation is sent again."""
    loop, times = asyncio.get_running_loop(), 0

    async def verb() -> int:
        nonlocal times
        times += 1
        answer: asyncio.Future[int] = loop.create_future()
        threading.Timer(0.02, loop.call_soon_threadsafe, [answer.set_result, times]).start()
        loop.call_later(0.01, time.sleep, 0.1 + BLOCKED_GRACE if times == 1 else 0.0)
        return await answer

    assert await retry_within(verb, timeout=0.1) in (1, 2)
