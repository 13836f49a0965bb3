"""Askers in step: half of them are answered while the others ask, where that is of use."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import pytest

from taskflow.app import coalesce
from taskflow.app.coalesce import ROOM, Coalescer
from taskflow.app.lockstep import MIN_CALLERS, Lockstep
from taskflow.broker.eager_tasks import STARTS_AT_ONCE

ROUNDS = 12


class Clock:
    """The coalescer's clock in place of `time`. A busy machine does not move it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(coalesce, "time", clock)
    return clock


class Store:
    """Answers each question with itself: in a later turn of the loop unless `at_once`, and never before `opens` is set."""

    def __init__(self, *, at_once: bool = False, opens: asyncio.Event | None = None) -> None:
        self.batches = list[list[int]]()
        self.is_asked = asyncio.Event()
        self._at_once = at_once
        self._opens = opens

    async def __call__(self, questions: list[int]) -> Sequence[int]:
        self.batches.append(questions)
        self.is_asked.set()
        if not self._at_once:
            await asyncio.sleep(0)
            if self._opens is not None:
                await self._opens.wait()
        return questions


class SlowStore(Store):
    """A store that takes `seconds` of the clock for each answer."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self._clock, self._seconds = clock, seconds

    async def __call__(self, questions: list[int]) -> Sequence[int]:
        answers = await super().__call__(questions)
        self._clock.now += self._seconds
        return answers


async def ask_in_step(store: Store, askers: int, clock: Clock, *, made_in: float, rounds: int = ROUNDS) -> list[int]:
    """Return the questions in the order in which they were asked. An asker takes `made_in` seconds of the clock to make one."""
    ask = Coalescer[int, int](store, timeout=1_000.0)
    asked = list[int]()

    async def asker(number: int) -> None:
        for turn in range(rounds):
            clock.now += made_in
            asked.append(turn * askers + number)
            assert await ask(asked[-1]) == turn * askers + number

    await asyncio.gather(*map(asker, range(askers)))
    return asked


async def test_of_many_in_step_half_go_out_while_the_others_are_made(clock: Clock) -> None:
    """Before Python 3.12 a task begins when the loop comes to it, which is after all of them."""
    store = Store()
    await ask_in_step(store, MIN_CALLERS, clock, made_in=0.0005)
    assert [len(batch) for batch in store.batches[:1]] == [MIN_CALLERS]
    assert {len(batch) for batch in store.batches[1:]} == {MIN_CALLERS // 2 if STARTS_AT_ONCE else MIN_CALLERS}


async def test_they_are_sent_in_the_order_of_asking(clock: Clock) -> None:
    store = Store()
    asked = await ask_in_step(store, MIN_CALLERS + 9, clock, made_in=0.0002)
    assert [question for batch in store.batches for question in batch] == asked


@pytest.mark.parametrize(
    ("a_store", "askers"),
    [
        pytest.param(lambda clock: SlowStore(clock, 0.1), MIN_CALLERS, id="the store takes longer than they"),
        pytest.param(lambda clock: Store(at_once=True), MIN_CALLERS, id="the store is this process"),
        pytest.param(lambda clock: Store(), MIN_CALLERS - 1, id="they are few"),
    ],
)
async def test_else_they_go_together(a_store: Callable[[Clock], Store], askers: int, clock: Clock) -> None:
    store = a_store(clock)
    await ask_in_step(store, askers, clock, made_in=0.0005)
    assert [len(batch) for batch in store.batches] == [askers] * ROUNDS


async def test_those_that_are_answered_ask_again_before_what_waits_goes_out() -> None:
    """They would be two steps for ever, each with a call of its own."""
    opens = asyncio.Event()
    store = Store(opens=opens)
    ask = Coalescer[int, int](store, timeout=10.0)

    async def asker(number: int) -> None:
        for _ in range(4):
            await ask(number)

    first = asyncio.create_task(asker(1))
    await store.is_asked.wait()
    second = asyncio.create_task(asker(2))
    await asyncio.sleep(0)
    opens.set()
    await asyncio.gather(first, second)
    assert [len(batch) for batch in store.batches] == [1, 2, 2, 2, 1]


async def on_top_of(frames: int, ask: Callable[[], Awaitable[int]]) -> int:
    return await (ask() if frames == 0 else on_top_of(frames - 1, ask))


async def test_who_asks_near_the_limit_of_recursion_fails_alone() -> None:
    """What is begun for all is not begun on top of his frames."""
    store, limit = Store(), sys.getrecursionlimit()
    ask = Coalescer[int, int](store, timeout=10.0)

    async def asker(number: int, frames: int) -> int:
        await ask(number)
        return await on_top_of(frames, partial(ask, number))

    for frames in range(limit - ROOM - 40, limit - 5, 5):
        deep = MIN_CALLERS // 2 - 1
        answers = await asyncio.gather(*(asker(n, frames if n == deep else 0) for n in range(MIN_CALLERS)), return_exceptions=True)
        assert [answer for n, answer in enumerate(answers) if n != deep] == [n for n in range(MIN_CALLERS) if n != deep]
        assert answers[deep] == deep or isinstance(answers[deep], RecursionError)


@pytest.mark.parametrize("askers", [1, 3])
async def test_a_store_that_answers_too_few_leaves_nobody_waiting(askers: int) -> None:
    async def short(questions: list[int]) -> Sequence[int]:
        await asyncio.sleep(0)
        return questions[:-1]

    ask = Coalescer[int, int](short, timeout=10.0)
    for _ in range(2):
        answers = await asyncio.wait_for(asyncio.gather(*map(ask, range(askers)), return_exceptions=True), 10)
        assert answers[:-1] == list(range(askers - 1))
        assert isinstance(answers[-1], ValueError)


async def test_what_is_asked_while_a_call_begins_waits_for_it() -> None:
    """One call at a time, whoever asks: the deadline is of one."""
    nested: list[asyncio.Future[int]] = []
    at_once, most = 0, 0

    async def store(questions: list[int]) -> Sequence[int]:
        nonlocal at_once, most
        if len(nested) < 2 * MIN_CALLERS:
            nested.extend(ask(-1) for _ in range(MIN_CALLERS))
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.001)
        at_once -= 1
        return questions

    ask = Coalescer[int, int](store, timeout=10.0)
    await asyncio.gather(*map(ask, range(MIN_CALLERS)))
    assert set(await asyncio.gather(*nested)) == {-1}
    assert most == 1


async def test_a_flush_that_a_stranger_cancels_before_it_begins_does_not_block_the_lane() -> None:
    """As a job does that cancels every task."""
    store = Store()
    ask = Coalescer[int, int](store, timeout=10.0)
    first = ask(1)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.wait([first], timeout=10)
    assert first.cancelled() or first.result() == 1
    assert await asyncio.wait_for(ask(2), 10) == 2


# --- the decision, by instants that are given ---------------------------------------------------------------------------


def in_step(number: int, *, took: float, each: float = 1.0) -> Lockstep:
    """`number` have been answered together at 0, in `took`; a question takes `each` to be made."""
    step = Lockstep()
    step.begin(-number * each - took)
    step.starts(number, -took)
    step.answered(number, 0, took, 0.0)
    return step


def test_half_is_when_half_of_them_have_asked_again() -> None:
    step = in_step(40, took=10.0)
    assert [waiting for waiting in range(1, 41) if step.is_half(waiting, float(waiting))] == [20]
    step = in_step(41, took=10.0)
    assert [waiting for waiting in range(1, 42) if step.is_half(waiting, float(waiting))] == [21]


@pytest.mark.parametrize(("took", "is_half"), [(59.0, True), (61.0, False)])
def test_a_store_that_takes_longer_than_they_is_asked_once(took: float, is_half: bool) -> None:
    assert in_step(40, took=took).is_half(20, 20.0) is is_half


@pytest.mark.parametrize(
    ("asked", "waiting", "took", "goes_on"), [(20, 20, 59.0, True), (20, 20, 61.0, False), (21, 19, 1.0, False), (15, 15, 1.0, False)]
)
def test_what_waits_goes_out_at_once_if_it_is_half_and_the_store_is_quick(asked: int, waiting: int, took: float, goes_on: bool) -> None:
    step = in_step(40, took=1.0)
    assert step.answered(asked, waiting, took, 100.0) is goes_on


def test_of_what_waited_already_nobody_knows_how_long_it_took() -> None:
    step = in_step(40, took=1.0)
    step.answered(10, 30, 50.0, 100.0)
    step.starts(30, 100.0)
    assert step.answered(20, 20, 59.0, 200.0), "it is one each as before"
