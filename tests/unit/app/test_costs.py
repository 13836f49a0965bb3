"""What sending a job costs its process, in function calls: a slower path fails here on any machine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from taskflow import enqueue, job
from taskflow.app.app import default_app
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.protocol import Added, Refused
from taskflow.broker.wakeups import WakeUpFlag
from taskflow.model.envelope import Envelope

CALLERS = 32
EACH = 10
SENT = CALLERS * EACH


@job(name="tests.unit.app.costs.add")
async def add(x: int, y: int = 1) -> int:
    return x + y


class Accepting(MemoryBroker):
    """Accepts jobs and forgets them, so that only the sender's part is counted."""

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        return [Added(envelope.id) for envelope in envelopes]


async def calls_of(work: Callable[[], Awaitable[object]]) -> int:
    """Return how often functions of taskflow, or of the standard library for it, are called or resumed."""
    calls = 0

    def count(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        calls += event == "call" and not frame.f_code.co_filename.startswith(str(Path(__file__).parent))

    with default_app().using(Accepting()):
        await add.delay(1)
        sys.setprofile(count)
        try:
            await work()
        finally:
            sys.setprofile(None)
    return calls


async def test_a_delay_is_some_forty_calls() -> None:
    """Nothing that was known at the job's declaration is looked up, compiled or bound again."""

    async def caller() -> None:
        for _ in range(EACH):
            await add.delay(1, 2)

    async def all_callers() -> None:
        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    assert await calls_of(all_callers) / SENT <= 40


async def test_a_call_in_bulk_is_some_twenty_calls() -> None:
    assert await calls_of(lambda: enqueue(add.bind(1, 2) for _ in range(SENT))) / SENT <= 19


@pytest.mark.parametrize("rings_from", ["its own loop", "another thread"])
async def test_many_who_wait_are_woken_by_one_message(monkeypatch: pytest.MonkeyPatch, rings_from: str) -> None:
    """Another thread sends the loop one message, each of which is a write to its descriptor; the loop itself sends none."""
    messages = 0
    loop = asyncio.get_running_loop()
    original = loop.call_soon_threadsafe

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal messages
        messages += 1
        return original(*args, **options)

    flag = WakeUpFlag()
    listeners = [flag.listen([f"topic {number}"]) for number in range(100)]
    waiting = [asyncio.ensure_future(listener.wait(10)) for listener in listeners]
    await asyncio.sleep(0)
    topics = [f"topic {number}" for number in range(100)]
    if rings_from == "its own loop":
        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        flag.wake(topics)
        assert messages == 0
    else:
        with monkeypatch.context() as patched:
            patched.setattr(loop, "call_soon_threadsafe", counted)
            ringing = asyncio.to_thread(flag.wake, topics)
            await ringing
        assert messages <= 2  # and one from the thread itself, when it has ended
    assert all(await asyncio.gather(*waiting))
