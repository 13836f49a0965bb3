"""Errors of telemetry, and large headers, harm no job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import sentry_sdk
from opentelemetry import propagate
from opentelemetry.sdk.trace import Span, TracerProvider

from taskflow import EnqueueCall, JobContext, Middleware, RunNext, Verdict, Worker, configure, job
from taskflow.broker.memory import MemoryBroker
from taskflow.model.job_schema import MAX_HEADER_BYTES
from taskflow.telemetry import OpenTelemetry, Sentry, Telemetry

runs = list[JobContext]()


@job(name="tests.telemetry.harmless")
async def harmless(ctx: JobContext) -> str:
    runs.append(ctx)
    return "done"


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@job(name="tests.telemetry.unreadable", max_attempts=3, retry=lambda attempt, error: 0.0, retry_on=(ValueError,))
async def unreadable(ctx: JobContext) -> None:
    runs.append(ctx)
    raise Unreadable


@pytest.fixture(autouse=True)
def no_runs() -> None:
    runs.clear()


def raises(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("telemetry is broken")


class Broken(Telemetry):
    """Fails before the job runs, after it, or by forgetting the verdict."""

    def __init__(self, *, how: str) -> None:
        self._how = how

    def stamp(self, calls: Sequence[EnqueueCall]) -> None:
        for call in calls:
            call.headers["trace"] = "\ud800"
        raises()

    async def run(self, context: JobContext, call_next: RunNext) -> Any:
        if self._how != "before the run":
            await call_next(context)
        if self._how != "returns None":
            raise RuntimeError("telemetry is broken")


async def work() -> None:
    async with Worker() as worker:
        await worker.drained()


@pytest.mark.parametrize("how", ["before the run", "after it", "returns None"])
async def test_telemetry_that_raises_changes_no_verdict(memory_broker: MemoryBroker, how: str) -> None:
    configure(telemetry=[Broken(how=how)])
    handle = await harmless.delay()
    await work()
    assert await handle.result() == "done"
    assert len(runs) == 1


async def test_an_error_of_the_middleware_inside_stays_one(memory_broker: MemoryBroker) -> None:
    class Refuses(Middleware):
        async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
            raise ValueError("refused")

    class Translates(Telemetry):
        async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
            try:
                return await call_next(context)
            except ValueError as error:
                raise KeyError from error

    configure(telemetry=[Translates()], middleware=[Refuses()])
    handle = await harmless.options(max_attempts=1).delay()
    await work()
    info = await handle.info()
    assert info is not None
    assert [error.type for error in info.errors] == ["KeyError"]
    assert runs == []


async def test_a_broken_sentry_harms_no_job(memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(telemetry=[Sentry()])
    for name in ("get_traceparent", "isolation_scope"):
        monkeypatch.setattr(sentry_sdk, name, raises)
    handle = await harmless.delay()
    await work()
    assert await handle.result() == "done"


async def test_a_broken_opentelemetry_harms_no_job(memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(telemetry=[OpenTelemetry(TracerProvider())])
    for place, name in ((propagate, "inject"), (Span, "end"), (Span, "set_attribute")):
        monkeypatch.setattr(place, name, raises)
    handle = await harmless.delay()
    await work()
    assert await handle.result() == "done"
    assert len(runs) == 1


@pytest.mark.parametrize("kind", [OpenTelemetry, Sentry])
async def test_an_exception_without_a_text_keeps_its_verdict(memory_broker: MemoryBroker, kind: type[Telemetry]) -> None:
    """The job is not retried after it."""
    configure(telemetry=[OpenTelemetry(TracerProvider()) if kind is OpenTelemetry else Sentry()])
    handle = await unreadable.delay()
    await work()
    assert len(runs) == 1
    info = await handle.info()
    assert info is not None
    assert [error.type for error in info.errors] == [f"{__name__}.Unreadable"]


async def test_headers_of_the_caller_come_before_those_of_telemetry(memory_broker: MemoryBroker) -> None:
    """So do headers that middleware adds, although it stamps after telemetry."""

    class Fills(Middleware):
        def stamp(self, calls: Sequence[EnqueueCall]) -> None:
            for call in calls:
                call.headers["more"] = "x" * (MAX_HEADER_BYTES - 5 - len("more"))

    configure(telemetry=[OpenTelemetry(TracerProvider())], middleware=[Fills()])
    await harmless.options(headers={"mine": "1"}).delay()
    configure(middleware=[])
    await harmless.options(headers={"mine": "x" * 3_000}).delay()
    await work()
    assert [sorted(context.headers) for context in runs] == [["mine", "more"], ["mine", "traceparent"]]
