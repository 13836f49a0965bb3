"""Metrics in Prometheus' format: of a process's workers, and of the whole store."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY, Collector

from taskflow.app.middleware import Telemetry
from taskflow.broker.admin import LimitInfo, QueueInfo
from taskflow.model.measures import unpack_measures
from taskflow.worker.measuring import WorkerFacts, WorkerMeasures

MAX_LIMITS: Final = 100  # maximum number of limit names that get separate labels

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_BOUNDS: Final = tuple(range(10, 38, 2))
"""The bins whose upper bounds are also bounds of buckets: from 1 ms to 19 hours, each four times the previous one."""


class Prometheus(Telemetry):
    """Serves metrics of the worker at `/metrics` of its health port (``taskflow worker --health-port 9000``). With ``--processes``, one
    page covers all processes. The page also has the registry's other metrics or, with ``--processes``, those of prometheus_client's
    multiprocess mode (``PROMETHEUS_MULTIPROC_DIR``).

    `registry`  the registry (default: prometheus_client's own), for an application that runs a `Worker` and serves its metrics itself
    """

    counts_runs = True

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry

    @contextmanager
    def working(self, measures: WorkerMeasures | None) -> Iterator[None]:
        assert measures is not None
        with _lock:
            if self._registry not in _counted:
                _counted[self._registry] = counted = _Counted()
                self._registry.register(_WorkerCollector(counted.facts))
            counted = _counted[self._registry]
        counted.workers.append(measures)
        try:
            yield
        finally:
            counted.end(measures)

    def page(self) -> tuple[str, bytes]:  # pyright: ignore[reportIncompatibleVariableOverride]  # the base class has none
        """Return the content type and the text of this process's metrics."""
        return CONTENT_TYPE, generate_latest(self._registry)


class _Counted:
    """The counts of a process's workers in one registry. All instances of `Prometheus` with that registry share them."""

    def __init__(self) -> None:
        self.workers: list[WorkerMeasures] = []
        self._ended = WorkerFacts(measures=b"")

    def facts(self) -> list[WorkerFacts]:
        with _lock:
            return [*(each.facts() for each in self.workers), self._ended]

    def end(self, measures: WorkerMeasures) -> None:
        """Remove a worker. Its counts are retained, but its slots are not."""
        with _lock:
            self._ended = self._ended.plus(measures.facts().ended())
            self.workers.remove(measures)


_lock: Final = threading.Lock()
_counted: Final = WeakKeyDictionary[CollectorRegistry, _Counted]()


class _WorkerCollector(Collector):
    def __init__(self, facts: Callable[[], Iterable[WorkerFacts]]) -> None:
        self._facts = facts

    def describe(self) -> Iterable[Metric]:
        return worker_metrics(())

    def collect(self) -> Iterable[Metric]:
        return worker_metrics(self._facts())


def page_of(facts: Iterable[WorkerFacts]) -> bytes:
    """Return the combined metrics of several processes as text, for their supervisor. Includes prometheus_client's multiprocess metrics."""
    registry, many = CollectorRegistry(), list(facts)
    registry.register(_WorkerCollector(lambda: many))
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def worker_metrics(many: Iterable[WorkerFacts]) -> Generator[Metric]:
    facts = WorkerFacts(measures=b"")
    for each in many:
        facts = facts.plus(each)
    labels = ("queue", "job")
    runs = CounterMetricFamily("taskflow_runs", "Runs that have ended, by their outcome.", labels=(*labels, "outcome"))
    times = HistogramMetricFamily("taskflow_run_seconds", "How long runs took.", labels=labels)
    waits = HistogramMetricFamily("taskflow_wait_seconds", "How long jobs waited between their due time and their claim.", labels=labels)
    for pair, measure in unpack_measures(facts.measures).items():
        for outcome, n in measure.runs.items():
            runs.add_metric((*pair, outcome), n)
        times.add_metric(pair, _buckets(measure.times), measure.ran / 1e6)
        waits.add_metric(pair, _buckets(measure.waits), measure.waited / 1e6)
    yield from (runs, times, waits)
    slots = GaugeMetricFamily("taskflow_slots", "Slots of workers, each for one run.", labels=("state",))
    slots.add_metric(("busy",), facts.busy)
    slots.add_metric(("free",), facts.free)
    yield slots
    yield GaugeMetricFamily("taskflow_loop_lag_seconds", "How long a job has blocked the event loop; 0 if none does.", facts.loop_lag)
    errors = CounterMetricFamily("taskflow_broker_errors", "Calls to the broker that failed and were repeated.", labels=("operation",))
    for operation, n in facts.broker_errors.items():
        errors.add_metric((operation,), n)
    yield errors
    yield CounterMetricFamily("taskflow_leases_lost", "Leases that went to other workers during a run.", facts.leases_lost)


def _buckets(bins: Mapping[int, int]) -> list[tuple[str, float]]:
    found, total, at = list[tuple[str, float]](), 0, 0
    for bound in _BOUNDS:
        while at <= bound:
            total += bins.get(at, 0)
            at += 1
        found.append((repr((1 << bound) / 1e6), total))
    return [*found, ("+Inf", sum(bins.values()))]


# --- the whole store ----------------------------------------------------------------------------------------------


def store_page(
    queues: Sequence[QueueInfo], totals: Mapping[str, Mapping[str, int]], workers: int, limits: Sequence[LimitInfo] = ()
) -> bytes:
    """Return a store's metrics as text: its jobs and the oldest ready one by queue, events, workers and limits."""
    registry = CollectorRegistry()
    registry.register(_StoreCollector([*store_metrics(queues, totals, workers), *limit_metrics(limits)]))
    return generate_latest(registry)


class _StoreCollector(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def store_metrics(queues: Sequence[QueueInfo], totals: Mapping[str, Mapping[str, int]], workers: int) -> Generator[Metric]:
    jobs = GaugeMetricFamily("taskflow_queue_jobs", "Jobs in a queue, by status.", labels=("queue", "status"))
    oldest = GaugeMetricFamily(
        "taskflow_queue_oldest_ready_seconds", "The age of the oldest ready job; 0 if none is ready.", labels=("queue",)
    )
    paused = GaugeMetricFamily("taskflow_queue_paused", "1 if the queue is paused.", labels=("queue",))
    events = CounterMetricFamily("taskflow_jobs", "Events of jobs since the store was created.", labels=("queue", "event"))
    for queue in queues:
        for status, n in queue.counts.items():
            jobs.add_metric((queue.name, status.value.lower()), n)
        oldest.add_metric((queue.name,), queue.oldest_ready_for or 0.0)
        paused.add_metric((queue.name,), queue.is_paused)
    for queue_name, counts in totals.items():
        for event, n in counts.items():
            events.add_metric((queue_name, event.replace(" ", "_")), n)
    yield from (jobs, oldest, paused, events)
    yield GaugeMetricFamily("taskflow_workers", "Living workers.", workers)


def limit_metrics(limits: Sequence[LimitInfo]) -> Generator[Metric]:
    """Add up each limit's jobs over its keys. Limits beyond the first `MAX_LIMITS` are added up as "_other". Omits rate limits."""
    jobs = GaugeMetricFamily("taskflow_limit_jobs", "Jobs that hold a slot of a limit, or wait for one.", labels=("limit", "state"))
    full = GaugeMetricFamily("taskflow_limit_full_keys", "Keys of a limit at which jobs wait.", labels=("limit",))
    found = dict[str, Counter[str]]()
    for limit in limits:
        if limit.per is None:
            counts = found.setdefault(limit.limit if limit.limit in found or len(found) < MAX_LIMITS else "_other", Counter())
            counts.update(holding=limit.running, waiting=limit.waiting, full=int(limit.waiting > 0))
    for name, counts in found.items():
        for state in ("holding", "waiting"):
            jobs.add_metric((name, state), counts[state])
        full.add_metric((name,), counts["full"])
    yield from (jobs, full)
