"""Traces and metrics of OpenTelemetry."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from opentelemetry import baggage, context as otel_context
from opentelemetry.context import get_value
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

import taskflow
from taskflow import JobFailed, Worker, configure
from taskflow.app.app import default_app
from taskflow.broker.memory import MemoryBroker
from taskflow.model.clock import ManualClock, Seams
from taskflow.telemetry import OpenTelemetry
from tests.support.waiting import until
from tests.telemetry.jobs import add, fails, fails_in_child, where, where_child, where_plain

PLACES = [where, where_plain, where_child]


class Telemetry:
    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("tests")
        configure(telemetry=[OpenTelemetry(self.provider, MeterProvider([self.reader]))])

    def spans(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.kind is kind]

    def points(self, name: str) -> list[Any]:
        data: Any = self.reader.get_metrics_data()
        metrics = data.resource_metrics[0].scope_metrics[0].metrics
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]


@pytest.fixture
def telemetry(memory_broker: MemoryBroker) -> Telemetry:
    return Telemetry()


async def work() -> None:
    async with Worker() as worker:
        await worker.drained()


def context_of(span: ReadableSpan) -> SpanContext:
    context: SpanContext | None = span.context
    assert context is not None
    return context


def ids(span: ReadableSpan) -> str:
    return f"{context_of(span).trace_id:032x}-{context_of(span).span_id:016x}"


@pytest.mark.parametrize("job", PLACES, ids=lambda job: job.name)
async def test_the_spans_of_a_job_are_in_the_trace_of_the_request_that_sent_it(telemetry: Telemetry, job: Any) -> None:
    """Wherever the job runs, its own spans are children of the run's."""
    with telemetry.tracer.start_as_current_span("request") as request:
        handle = await job.delay()
    await work()
    [sent], [run] = telemetry.spans(SpanKind.PRODUCER), telemetry.spans(SpanKind.CONSUMER)
    assert context_of(sent).trace_id == context_of(run).trace_id == request.get_span_context().trace_id
    assert sent.parent is not None
    assert sent.parent.span_id == request.get_span_context().span_id
    assert run.parent is not None
    assert run.parent.span_id == context_of(sent).span_id
    assert await handle.result(10) == ids(run)
    assert (sent.name, run.name) == ("send default", "process default")
    assert run.attributes is not None
    assert dict(run.attributes) == {
        "messaging.system": "taskflow",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "default",
        "messaging.message.id": handle.id,
        "taskflow.job": job.name,
        "taskflow.attempt": 1,
        "taskflow.outcome": "succeeded",
    }


async def test_a_retry_begins_a_trace_that_links_to_the_senders(telemetry: Telemetry) -> None:
    handle = await fails.delay()
    await work()
    with pytest.raises(JobFailed):
        await handle.result(10)
    [sent], [first, second] = telemetry.spans(SpanKind.PRODUCER), telemetry.spans(SpanKind.CONSUMER)
    assert context_of(first).trace_id == context_of(sent).trace_id
    assert context_of(second).trace_id != context_of(sent).trace_id
    assert second.parent is None
    assert [link.context.span_id for link in second.links] == [context_of(sent).span_id]
    for run, outcome in ((first, "retried"), (second, "failed")):
        assert run.attributes is not None
        assert (run.attributes["taskflow.outcome"], run.attributes["error.type"]) == (outcome, "ValueError")
        assert (run.status.status_code, run.status.description) == (StatusCode.ERROR, "it fails")
        [event] = run.events
        assert event.attributes is not None
        assert "in fails" in str(event.attributes["exception.stacktrace"])


async def test_so_does_a_first_run_after_a_long_wait() -> None:
    clock = ManualClock()
    with default_app().using(MemoryBroker(seams=Seams(clock=clock))):
        telemetry = Telemetry()
        await add.delay(1, 2)
        clock.advance(61.0)
        await work()
    [sent], [run] = telemetry.spans(SpanKind.PRODUCER), telemetry.spans(SpanKind.CONSUMER)
    assert context_of(run).trace_id != context_of(sent).trace_id
    assert [link.context.span_id for link in run.links] == [context_of(sent).span_id]


async def test_an_error_in_a_child_process_is_in_the_span(telemetry: Telemetry) -> None:
    await fails_in_child.delay()
    await work()
    [run] = telemetry.spans(SpanKind.CONSUMER)
    [event] = run.events
    assert event.attributes is not None
    assert event.attributes["exception.message"] == "in the child"
    assert "fails_in_child" in str(event.attributes["exception.stacktrace"])


async def test_a_batch_is_one_span(telemetry: Telemetry) -> None:
    await taskflow.enqueue([add.bind(number, 1) for number in range(20)])
    await work()
    [sent], runs = telemetry.spans(SpanKind.PRODUCER), telemetry.spans(SpanKind.CONSUMER)
    assert sent.attributes is not None
    assert sent.attributes["messaging.batch.message_count"] == 20
    assert {context_of(run).trace_id for run in runs} == {context_of(sent).trace_id}
    assert len(runs) == 20


async def test_baggage_travels_unless_it_is_large(telemetry: Telemetry) -> None:
    for text in ("acme", "x" * 5_000):
        token = otel_context.attach(baggage.set_baggage("tenant", text))
        await where.delay()
        otel_context.detach(token)
    seen = list[object]()

    class Look(taskflow.Middleware):
        async def run(self, context: taskflow.JobContext, call_next: taskflow.RunNext) -> taskflow.Verdict:
            seen.append(baggage.get_baggage("tenant"))
            return await call_next(context)

    configure(middleware=[Look()])
    await work()
    assert seen == ["acme", None]


async def test_the_worker_asks_its_broker_in_silence(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instrumentations of drivers read the context's key. A job's own calls are traced, like those after `async with Worker()`."""
    quiet = dict[str, set[object]]()

    def note(name: str) -> None:
        quiet.setdefault(name, set()).add(get_value("suppress_instrumentation"))

    for name in ("claim", "settle", "beat", "upkeep"):
        asked = getattr(MemoryBroker, name)

        async def traced(self: MemoryBroker, *args: Any, name: str = name, asked: Any = asked, **more: Any) -> Any:
            note(name)
            return await asked(self, *args, **more)

        monkeypatch.setattr(MemoryBroker, name, traced)

    @taskflow.job(name="tests.telemetry.notes")
    async def notes() -> None:
        note("job")

    async with Worker() as worker:
        note("application")
        await notes.delay()
        await worker.drained()
        await until(lambda: "beat" in quiet)
    assert quiet == {"claim": {True}, "settle": {True}, "beat": {True}, "upkeep": {True}, "job": {None}, "application": {None}}


async def test_messages_and_durations_are_metrics(telemetry: Telemetry) -> None:
    await taskflow.enqueue([add.bind(0, 1), *(add.options(queue="other").bind(number, 1) for number in range(2))])
    await fails.delay()
    await work()
    sent = {point.attributes["messaging.destination.name"]: point.value for point in telemetry.points("messaging.client.sent.messages")}
    assert sent == {"default": 2, "other": 2}
    assert [span.name for span in telemetry.spans(SpanKind.PRODUCER)] == ["send", "send default"]
    durations = Counter[tuple[str, str | None]]()
    for point in telemetry.points("messaging.process.duration"):
        durations[point.attributes["taskflow.outcome"], point.attributes.get("error.type")] += point.count
    assert durations == {("succeeded", None): 3, ("retried", "ValueError"): 1, ("failed", "ValueError"): 1}


async def test_without_an_sdk_the_context_is_passed_on_alone(memory_broker: MemoryBroker) -> None:
    configure(telemetry=[OpenTelemetry()])
    provider = TracerProvider()
    with provider.get_tracer("tests").start_as_current_span("request") as request:
        handle = await where.delay()
    await work()
    assert (await handle.result(10)).startswith(f"{request.get_span_context().trace_id:032x}-")
