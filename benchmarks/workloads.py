"""All workloads and studies, by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from benchmarks import (
    admin_pages,
    backlog,
    dashboard_pages,
    drain,
    fleet,
    flows,
    herd,
    idle,
    latency,
    limits,
    loads,
    postgres_busy,
    recovery,
    redis_costs,
    redis_profile,
    redis_scripts,
    rolling,
    schedules,
    sending,
    sizes,
    sqlite_operations,
    starting,
    telemetry,
    transactions,
    worker_runs,
)
from benchmarks.options import Options
from benchmarks.report import Row
from benchmarks.stores import REDIS, Store, postgres


@dataclass(frozen=True)
class Workload:
    """A workload. If it `is_costly`, quick runs leave it out."""

    title: str
    measure: Callable[[Options], list[Row]]
    is_costly: bool = False


OnStore = Callable[[Store, Options], list[Row]]

ON_SERVERS: Final[Sequence[tuple[str, str, OnStore, bool]]] = (
    ("drain", "draining a queue", drain.drains, False),
    ("enqueue", "sending jobs", sending.sendings, False),
    ("latency", "latency", latency.latencies, False),
    ("plans", "planned jobs", latency.plans, False),
    ("load", "waits under a steady load", loads.loaded, False),
    ("threads", "plain functions in threads", drain.threads, False),
    ("workers", "several worker processes", fleet.workers, True),
    ("sleeping", "jobs that sleep", fleet.sleeping, True),
    ("concurrency", "by concurrency", drain.concurrencies, True),
    ("payload", "by payload size", fleet.payloads, True),
    ("backlogs", "by queue length", drain.backlogs, True),
    ("depth", "draining a queue beside many other jobs", drain.depths, True),
    ("bytes", "the size of a queued job", sizes.sizes, False),
    ("idle", "idle workers", idle.idleness, True),
    ("herd", "a lone job beside many idle workers", herd.herds, True),
    ("schedules", "schedules, none due", schedules.idleness, True),
    ("start", "starting a worker", starting.starts, False),
    ("flows", "flows", flows.on_server, True),
)


def _workloads() -> dict[str, Workload]:
    found = {
        "drain": Workload("memory and SQLite: draining a queue", worker_runs.drains),
        "enqueue": Workload("memory and SQLite: sending jobs", worker_runs.enqueues),
        "latency": Workload("memory and SQLite: latency on an idle worker", worker_runs.latencies),
        "depth": Workload("memory and SQLite: draining a queue beside many other jobs", worker_runs.depths, is_costly=True),
        "operations": Workload("SQLite: operations", sqlite_operations.measure),
        "bytes": Workload("SQLite: the size of a queued job", sqlite_operations.sizes),
        "schedules": Workload("how late schedules fire", schedules.lags, is_costly=True),
        "transactions": Workload("jobs in the sender's transaction", transactions.transactions, is_costly=True),
        "limits": Workload("the cost of limits and fair queueing", limits.drains),
        "telemetry": Workload("the cost of telemetry", telemetry.costs),
        "flows": Workload("memory and SQLite: flows", flows.flows, is_costly=True),
        "admin-pages": Workload("admin pages over a million jobs", admin_pages.pages, is_costly=True),
        "dashboard-pages": Workload("the dashboard over a million jobs", dashboard_pages.pages, is_costly=True),
        "start": Workload("commands and imports", starting.commands),
    }
    for name, title, measure, is_costly in ON_SERVERS:
        found[f"redis-{name}"] = Workload(f"Redis: {title}", partial(measure, REDIS), is_costly)
        found[f"postgres-{name}"] = Workload(f"PostgreSQL: {title}", partial(_on_postgres, measure), is_costly)
    return found


def _on_postgres(measure: OnStore, options: Options) -> list[Row]:
    return measure(postgres(options.under), options)


WORKLOADS: Final = _workloads()

STUDIES: Final[dict[str, Callable[[argparse.Namespace], None]]] = {
    "redis-leftovers": lambda arguments: redis_costs.leftovers(arguments.jobs or 100_000),
    "redis-scripts": lambda arguments: redis_scripts.hold_times(arguments.jobs or 1_000_000),
    "redis-profile": lambda arguments: redis_profile.profile(arguments.jobs or 300_000),
    "postgres-backlog": backlog.backlog,
    "postgres-busy": postgres_busy.busy,
    "recovery": recovery.recovery,
    "rolling": rolling.rolling,
}
"""The studies, which print and store their results in separate forms. They run only if they are named."""
