"""The cost of telemetry: a worker drains with and without it, traced runs, and many jobs are sent at once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from operator import sub
from typing import Any, Final

import msgspec
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from benchmarks.drain import fill_with_notes, until_all_ran
from benchmarks.loops import run_in_fastest_loop
from benchmarks.marks import marks_of
from benchmarks.options import Options
from benchmarks.places import PLACES
from benchmarks.processes import using
from benchmarks.report import Measure, Row, in_turn
from benchmarks.tasks import noop, record_into
from taskflow import Job, JobContext, Worker, configure, enqueue, job
from taskflow.app.app import default_app
from taskflow.model.clock import Seams, SystemClock
from taskflow.model.envelope import ClaimId, Lease
from taskflow.model.verdict import Succeeded
from taskflow.telemetry import History, OpenTelemetry, Prometheus, Telemetry
from taskflow.worker.executor import Executor
from taskflow.worker.lease_table import HeldLease
from taskflow.worker.options import WorkerOptions

JOBS: Final = 40_000
BEST_OF: Final = 3
"""The runs of a contender in a turn. The cheapest one counts, because other programs can only make a run more expensive."""

BLOCKS: Final = 300
RUNS: Final = 100
"""Traced runs are measured in many short blocks, one of each kind in turn. Other programs disturb few of them, which the median ignores."""

SENDER: Final = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}

BULK: Final = 100_000
WITHOUT: Final = "without telemetry"

Place = Callable[[], AbstractContextManager[str]]
Chosen = Callable[[], Sequence[Telemetry]]


def costs(options: Options) -> list[Row]:
    """Measure with a worker in this process, without logs. CPU is this process's time, and does not include a server's."""
    places: dict[str, Place] = {"memory": lambda: nullcontext("memory://")}
    places |= {name: partial(place, options.under) for name, place in PLACES.items()}
    rows: list[Row] = []
    for name, place in places.items():
        with_it, without = (partial(_drain, place, options.of(JOBS), chosen) for chosen in (_counting, tuple))
        what = f"{name}, {options.of(JOBS):,} queued, Prometheus and history"
        rows += in_turn(what, options.repeats, with_it, without, part=f"drain, {name}", beside=WITHOUT)
    blocks = max(3, int(options.share * BLOCKS))
    traced = partial(_traced, blocks)
    rows += in_turn(f"{blocks} blocks of {RUNS} runs, OpenTelemetry", options.repeats, traced, part="traces")
    with_it, without = (partial(_bulk, places["memory"], options.of(BULK), chosen) for chosen in (_tracing, tuple))
    return rows + in_turn(
        f"memory, enqueue() of {options.of(BULK):,}, OpenTelemetry", options.repeats, with_it, without, beside=WITHOUT, part="bulk"
    )


def _counting() -> Sequence[Telemetry]:
    return Prometheus(CollectorRegistry()), History()


def _tracing() -> Sequence[Telemetry]:
    return (OpenTelemetry(*_providers()),)


def _providers() -> tuple[TracerProvider, MeterProvider]:
    """Return an SDK that keeps counts and drops spans when they end, because exporters are not measured."""
    return TracerProvider(shutdown_on_exit=False), MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)


def _drain(place: Place, jobs: int, telemetry: Chosen) -> Mapping[str, float]:
    return _best(lambda: run_in_fastest_loop(_drain_filled(place, jobs, telemetry)))


def _best(measure: Measure) -> Mapping[str, float]:
    return min((measure() for _ in range(BEST_OF)), key=lambda measured: measured["CPU µs/job"])


async def _drain_filled(place: Place, jobs: int, telemetry: Chosen) -> Mapping[str, float]:
    """Drain jobs that were sent without telemetry. Each job records that it ran."""
    with place() as url, marks_of(jobs) as marks:
        async with using(url):
            await fill_with_notes(jobs, record_into(marks))
            configure(telemetry=telemetry())
            async with Worker(options=WorkerOptions(subscribers=())):
                began = time.process_time()
                await until_all_ran(marks, jobs)
                spent = time.process_time() - began
        marks.check()
        return {"jobs/s": marks.rate, "CPU µs/job": 1e6 * spent / jobs}


def _traced(blocks: int) -> Mapping[str, float]:
    """Measure what a traced run costs beyond a job that makes such a span itself through the SDK."""
    spans, meters = _providers()
    kinds = ((noop, ()), (_making_a_span(spans, meters), ()), (noop, (OpenTelemetry(spans, meters),)))
    return run_in_fastest_loop(_run_in_turn(blocks, kinds))


async def _run_in_turn(blocks: int, kinds: Sequence[tuple[Job[[], None], tuple[Telemetry, ...]]]) -> Mapping[str, float]:
    """Measure runs of an executor, from the lease to the settlement, without a store."""
    contenders = [(Executor(default_app(), layers, threads=None, seams=Seams()), _lease_of(run), list[float]()) for run, layers in kinds]
    for _ in range(blocks):
        for executor, lease, spent in contenders:
            began = time.process_time()
            settlements = [await executor.run(HeldLease(lease)) for _ in range(RUNS)]
            spent.append(1e6 * (time.process_time() - began) / RUNS)
            assert all(type(each.verdict) is Succeeded for each in settlements)
    plain, own, ours = (spent for _, _, spent in contenders)
    span, beyond = (statistics.median(map(sub, more, less)) for more, less in ((own, plain), (ours, own)))
    return {"CPU µs/run without": statistics.median(plain), "the SDK's own span, µs": span, "CPU µs/run beyond it": beyond}


def _lease_of(run: Job[[], None]) -> Lease:
    envelope = msgspec.structs.replace(run.bind().envelope, headers=SENDER)
    return Lease(envelope=envelope, epoch=1, claim=ClaimId(bytes(16), 0, 0), created_at=SystemClock().wall())


def _making_a_span(spans: TracerProvider, meters: MeterProvider) -> Job[[], None]:
    """Return a job that makes the span and the metric which the conventions ask for. It reads the sender's context once for all runs,
    because ours does."""
    tracer = spans.get_tracer("taskflow")
    duration = meters.get_meter("taskflow").create_histogram("messaging.process.duration", "s")
    sender = propagate.extract(SENDER, context=Context())
    system = {"messaging.system": "taskflow", "messaging.operation.name": "process", "messaging.operation.type": "process"}

    @job(name="benchmarks.making_a_span")
    async def making_a_span(context: JobContext) -> None:
        began = time.perf_counter()
        common: dict[str, Any] = {**system, "messaging.destination.name": context.queue, "taskflow.job": context.job_name}
        attributes = {**common, "messaging.message.id": context.job_id, "taskflow.attempt": context.attempt}
        with tracer.start_as_current_span(f"process {context.queue}", sender, trace.SpanKind.CONSUMER, attributes) as span:
            span.set_attribute("taskflow.outcome", "succeeded")
            duration.record(time.perf_counter() - began, {**common, "taskflow.outcome": "succeeded"})

    return making_a_span


def _bulk(place: Place, jobs: int, telemetry: Chosen) -> Mapping[str, float]:
    return _best(lambda: run_in_fastest_loop(_bulk_sent(place, jobs, telemetry)))


async def _bulk_sent(place: Place, jobs: int, telemetry: Chosen) -> Mapping[str, float]:
    with place() as url:
        async with using(url):
            configure(telemetry=telemetry())
            await noop.delay()
            began, spent = time.perf_counter(), time.process_time()
            await enqueue(noop.bind() for _ in range(jobs))
            return {"jobs/s": jobs / (time.perf_counter() - began), "CPU µs/job": 1e6 * (time.process_time() - spent) / jobs}
