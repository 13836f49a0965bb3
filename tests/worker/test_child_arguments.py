"""The arguments of jobs in child processes, as middleware in the worker sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import date
from typing import Any

import pytest
from msgspec.structs import replace

from taskflow import Failed, JobContext, Middleware, Parked, RunNext, Succeeded, Verdict, Worker, configure
from taskflow.broker.memory import MemoryBroker
from taskflow.events import Event, RunEnded
from taskflow.model.codec import encode_value
from taskflow.worker.options import WorkerOptions
from tests.worker.child_jobs import Order, describe, pid


class Looking(Middleware):
    def __init__(self) -> None:
        self.arguments: list[Mapping[str, Any]] = []

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        self.arguments.append(context.arguments)
        return await call_next(context)


class Verdicts(Middleware):
    def __init__(self) -> None:
        self.seen: list[Verdict] = []

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        self.seen.append(await call_next(context))
        return self.seen[-1]


pytestmark = pytest.mark.usefixtures("memory_broker")


async def test_they_are_decoded_in_the_worker_too() -> None:
    """So is the result, for subscribers as well. The result keeps the arguments if that is the worker's default."""
    looking, verdicts, ended = Looking(), Verdicts(), list[Event]()
    configure(middleware=[looking, verdicts], subscribers=[ended.append], defaults={"keep_arguments": True})
    order = Order(7, date(2026, 1, 31))
    handle = await describe.delay(order)
    async with Worker():
        assert await handle.result(20) == [order, order]
    assert [dict(arguments) for arguments in looking.arguments] == [{"order": order, "times": 2}]
    events = [event.verdict for event in ended if isinstance(event, RunEnded)]
    assert [verdict.value for verdict in (*verdicts.seen, *events) if isinstance(verdict, Succeeded)] == [[order, order]] * 2
    info = await handle.info()
    assert info is not None
    assert info.arguments == {"order": order, "times": 2}


@pytest.mark.parametrize("asks", [True, False], ids=["asked", "not asked"])
@pytest.mark.parametrize(("payload", "kind"), [(encode_value({"newer": 1}), Parked), (b"\x01\x00\x00\x01\xc1", Failed)])
async def test_unsuitable_arguments_have_the_same_outcome_with_middleware(
    broker: MemoryBroker, payload: bytes, kind: type[Verdict], asks: bool
) -> None:
    """An argument that only a newer version of the code knows parks the job, and undecodable bytes fail it."""
    configure(middleware=[Looking()] if asks else [Verdicts()])
    ended = list[Verdict]()
    await broker.enqueue([replace(pid.bind().envelope, payload=payload)])

    def note(event: Any) -> None:
        if hasattr(event, "verdict"):
            ended.append(event.verdict)

    async with asyncio.timeout(20), Worker(options=WorkerOptions(subscribers=(note,))) as worker:
        while not worker.tally.runs:  # noqa: ASYNC110  # no event tells it
            await asyncio.sleep(0.01)
    [verdict] = ended
    assert type(verdict) is kind
    assert not isinstance(verdict, Succeeded)
