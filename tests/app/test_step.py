"""Askers in step: half of them are answered while the others ask, where that is of use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from taskflow.app.coalesce import Coalescer
from taskflow.app.step import MANY, Step
from taskflow.broker.eager import STARTS_AT_ONCE

ROUNDS = 12


class Store:
    """Echoes what it is asked, `takes` seconds later or, without, when the loop comes to it."""

    def __init__(self, takes: float = 0.0, *, at_once: bool = False) -> None:
        self.batches = list[list[int]]()
        self._takes = takes
        self._at_once = at_once

    async def __call__(self, questions: list[int]) -> Sequence[int]:
        self.batches.append(questions)
        if not self._at_once:
            await asyncio.sleep(self._takes)
        return questions


async def ask_in_step(store: Store, askers: int, *, made_in: float = 0.0, rounds: int = ROUNDS) -> list[int]:
    """What was asked, in order; `made_in` are the seconds that each question takes to be made."""
    ask = Coalescer[int, int](store, patience=10.0)
    asked = list[int]()

    async def asker(number: int) -> None:
        for turn in range(rounds):
            time.sleep(made_in)  # noqa: ASYNC251 - to make it takes the loop's own time
            asked.append(turn * askers + number)
            assert await ask(asked[-1]) == turn * askers + number

    await asyncio.gather(*map(asker, range(askers)))
    return asked


async def test_of_many_in_step_half_go_out_while_the_others_are_made() -> None:
    """Before Python 3.12 a task begins when the loop comes to it, which is after all of them."""
    store = Store()
    await ask_in_step(store, MANY, made_in=0.0005)
    assert [len(batch) for batch in store.batches[:1]] == [MANY]
    assert {len(batch) for batch in store.batches[1:]} == {MANY // 2 if STARTS_AT_ONCE else MANY}


async def test_they_are_sent_in_the_order_of_asking() -> None:
    store = Store()
    asked = await ask_in_step(store, MANY + 9, made_in=0.0002)
    assert [question for batch in store.batches for question in batch] == asked


@pytest.mark.parametrize(
    ("store", "askers"),
    [
        pytest.param(Store(0.1), MANY, id="the store takes longer than they"),
        pytest.param(Store(at_once=True), MANY, id="the store is this process"),
        pytest.param(Store(), MANY - 1, id="they are few"),
    ],
)
async def test_else_they_go_together(store: Store, askers: int) -> None:
    await ask_in_step(store, askers)
    assert [len(batch) for batch in store.batches] == [askers] * ROUNDS


async def test_those_that_are_answered_ask_again_before_what_waits_goes_out() -> None:
    """They would be two steps for ever, each with a call of its own."""
    store = Store(0.05)
    ask = Coalescer[int, int](store, patience=10.0)

    async def asker(number: int) -> None:
        for _ in range(4):
            await ask(number)

    first = asyncio.create_task(asker(1))
    await asyncio.sleep(0.02)
    await asyncio.gather(first, asker(2))
    assert [len(batch) for batch in store.batches] == [1, 2, 2, 2, 1]


# --- the decision, by instants that are given ---------------------------------------------------------------------------


def in_step(number: int, *, took: float, each: float = 1.0) -> Step:
    """`number` have been answered together at 0, in `took`; a question takes `each` to be made."""
    step = Step()
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
