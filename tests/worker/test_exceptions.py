"""The exception object of a verdict, which exists only while the run ends."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from taskflow import (
    Backoff,
    Cancel,
    Cancelled,
    Discard,
    Discarded,
    JobContext,
    Middleware,
    Retried,
    Retry,
    RunNext,
    Snooze,
    Snoozed,
    Succeeded,
    Verdict,
    Worker,
    configure,
    enqueue,
    job,
)
from taskflow.broker.memory import MemoryBroker
from taskflow.model.ids import parse_id
from tests.support.waiting import until


class Watching(Middleware):
    """Keeps the verdicts, and the exceptions that they had when it saw them."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Verdict, BaseException | None]] = {}

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        verdict = await call_next(context)
        self.seen[str(context.arguments["how"]) if context.arguments else context.job_name] = (verdict, verdict.exception)
        return verdict


pytestmark = pytest.mark.usefixtures("memory_broker")


@pytest.fixture
def watching() -> Watching:
    watching = Watching()
    configure(middleware=[watching])
    return watching


class Own(Exception):
    """Can be referenced weakly, unlike a built-in exception."""


CAUSE = Own("the cause")

LATER = Backoff(base=60, jitter=False)
"""The delay keeps a second attempt, with another verdict, out of the test."""


def act(ctx: JobContext, how: str) -> str:
    match how:
        case "raises":
            raise Own("mine")
        case "asks for another attempt":
            raise Retry(after=60) from CAUSE
        case "discards":
            raise Discard("useless") from CAUSE
        case "cancels":
            raise Cancel("not wanted") from CAUSE
        case "snoozes":
            raise Snooze(after=60)
        case "exits":
            raise SystemExit(3)
    return how


@job(name="tests.exceptions.in_loop", max_attempts=2, retry=LATER)
async def in_loop(ctx: JobContext, how: str) -> object:
    if how == "returns what cannot be encoded":
        return object()
    if how in ("overruns", "is cancelled"):
        await asyncio.sleep(60)
    return act(ctx, how)


@job(name="tests.exceptions.in_thread", max_attempts=2, retry=LATER)
def in_thread(ctx: JobContext, how: str) -> str:
    return act(ctx, how)


KINDS = {
    "raises": (Retried, Own),
    "asks for another attempt": (Retried, Retry),
    "discards": (Discarded, Discard),
    "cancels": (Cancelled, Cancel),
    "exits": (Retried, SystemExit),
    "snoozes": (Snoozed, type(None)),
    "returns": (Succeeded, type(None)),
}


async def until_ended(worker: Worker, runs: int) -> None:
    await until(lambda: worker.tally.runs >= runs)


@pytest.mark.parametrize("kind", [in_loop, in_thread], ids=["in the loop", "in a thread"])
async def test_middleware_sees_the_exception_itself(watching: Watching, kind: Any) -> None:
    await enqueue(kind.bind(how) for how in KINDS)
    async with Worker() as worker:
        await until_ended(worker, len(KINDS))
    assert {how: (type(verdict), type(error)) for how, (verdict, error) in watching.seen.items()} == KINDS
    for how in ("asks for another attempt", "discards", "cancels"):
        assert (error := watching.seen[how][1]) is not None
        assert error.__cause__ is CAUSE
    assert (mine := watching.seen["raises"][1]) is not None
    assert mine.__traceback__ is not None


async def test_errors_outside_the_function_count_too(watching: Watching, memory_broker: MemoryBroker) -> None:
    """This includes a timeout, a cancellation, and a result that cannot be encoded."""
    cancelled = await in_loop.delay("is cancelled")
    await in_loop.options(timeout=0.05).delay("overruns")
    await in_loop.delay("returns what cannot be encoded")
    async with Worker() as worker:
        await until_ended(worker, 2)
        await memory_broker.cancel([parse_id(cancelled.id)])
        await until_ended(worker, 3)
    found = {how: (type(verdict).__name__, type(error).__name__) for how, (verdict, error) in watching.seen.items()}
    assert found == {
        "is cancelled": ("Cancelled", "CancelledError"),
        "overruns": ("Retried", "TimeoutError"),
        "returns what cannot be encoded": ("Failed", "EncodeError"),
    }


async def test_it_is_gone_once_the_run_has_ended(watching: Watching) -> None:
    """It would keep the run's variables alive, and the verdict may wait for the store."""
    kept = list[weakref.ref[BaseException]]()

    class Raising(Middleware):
        async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
            verdict = await call_next(context)
            if verdict.exception is not None:
                kept.append(weakref.ref(verdict.exception))
                raise verdict.exception  # so a frame of its traceback holds the verdict
            return verdict

    configure(middleware=[Raising()])
    await enqueue([in_loop.bind("raises"), in_thread.bind("raises")])
    async with Worker() as worker:
        await until_ended(worker, 2)
    await asyncio.sleep(0)
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
