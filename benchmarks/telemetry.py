"""The cost of telemetry: a worker drains with and without it, and many jobs are sent at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from benchmarks.drain import fill_with_notes, until_all_ran
from benchmarks.loops import run_in_fastest_loop
from benchmarks.marks import Marks, marks_of
from benchmarks.options import Options
from benchmarks.places import PLACES
from benchmarks.processes import using
from benchmarks.report import Measure, Row, in_turn
from benchmarks.tasks import noop, record_into
from taskflow import Job, Worker, configure, enqueue, job
from taskflow.telemetry import History, OpenTelemetry, Prometheus, Telemetry
from taskflow.worker.options import WorkerOptions

JOBS: Final = 10_000
BEST_OF: Final = 3
"""The runs of a contender in a turn. The cheapest one counts, because other programs can only make a run more expensive."""

TURNS: Final = 6
"""The drains of each kind for the cost of a span. A difference needs more of them than a ratio."""

BULK: Final = 100_000
WITHOUT: Final = "without telemetry"

Place = Callable[[], AbstractContextManager[str]]
Chosen = Callable[[], Sequence[Telemetry]]
Noting = Job[[int], None]


def costs(options: Options) -> list[Row]:
    """Measure with a worker in this process, without logs. CPU is this process's time, and does not include a server's."""
    places: dict[str, Place] = {"memory": lambda: nullcontext("memory://")}
    places |= {name: partial(place, options.under) for name, place in PLACES.items()}
    rows: list[Row] = []
    for name, place in places.items():
        with_it, without = (partial(_drain, place, options.of(JOBS), chosen) for chosen in (_counting, tuple))
        what = f"{name}, {options.of(JOBS):,} queued, Prometheus and history"
        rows += in_turn(what, options.repeats, with_it, without, part=f"drain, {name}", beside=WITHOUT)
    traced = partial(_traced, places["memory"], options.of(JOBS))
    rows += in_turn("memory, OpenTelemetry", options.repeats, traced, part="traces")
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


def _drain(place: Place, jobs: int, telemetry: Chosen, of: Callable[[Marks], Noting] = record_into) -> Mapping[str, float]:
    return _best(lambda: _drain_once(place, jobs, telemetry, of))


def _drain_once(place: Place, jobs: int, telemetry: Chosen, of: Callable[[Marks], Noting]) -> Mapping[str, float]:
    return run_in_fastest_loop(_drain_filled(place, jobs, telemetry, of))


def _best(measure: Measure) -> Mapping[str, float]:
    return min((measure() for _ in range(BEST_OF)), key=lambda measured: measured["CPU µs/job"])


async def _drain_filled(place: Place, jobs: int, telemetry: Chosen, of: Callable[[Marks], Noting]) -> Mapping[str, float]:
    """Drain jobs that were sent without telemetry. Each job records that it ran."""
    with place() as url, marks_of(jobs) as marks:
        async with using(url):
            await fill_with_notes(jobs, of(marks))
            configure(telemetry=telemetry())
            async with Worker(options=WorkerOptions(subscribers=())):
                began = time.process_time()
                await until_all_ran(marks, jobs)
                spent = time.process_time() - began
        marks.check()
        return {"jobs/s": marks.rate, "CPU µs/job": 1e6 * spent / jobs}


def _traced(place: Place, jobs: int) -> Mapping[str, float]:
    """Measure what a traced run costs beyond a job that makes such a span itself through the SDK."""
    kinds: tuple[tuple[Chosen, Callable[[Marks], Noting]], ...] = ((tuple, record_into), (tuple, _making_a_span), (_tracing, record_into))
    turns = [[_drain_once(place, jobs, *kind)["CPU µs/job"] for kind in kinds] for _ in range(TURNS)]
    plain, own, ours = (min(spent) for spent in zip(*turns, strict=True))
    return {"the SDK's own µs": own - plain, "CPU µs/job beyond it": ours - own}


def _making_a_span(marks: Marks) -> Noting:
    spans, meters = _providers()
    tracer = spans.get_tracer("taskflow")
    duration = meters.get_meter("taskflow").create_histogram("messaging.process.duration", "s")
    attributes: dict[str, Any] = {f"messaging.attribute.{number}": "a value" for number in range(5)}

    @job(name="benchmarks.making_a_span")
    async def making_a_span(number: int) -> None:
        began = time.perf_counter()
        more: dict[str, Any] = {"messaging.message.id": "an id", "taskflow.attempt": number}
        root = propagate.extract({}, context=Context())
        with tracer.start_as_current_span("process default", root, trace.SpanKind.CONSUMER, {**attributes, **more}) as span:
            marks.mark(number)
            span.set_attribute("taskflow.outcome", "succeeded")
            duration.record(time.perf_counter() - began, {**attributes, "taskflow.outcome": "succeeded"})

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
