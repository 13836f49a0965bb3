"""All that can be measured, by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from benchmarks import (
    backlog,
    console_pages,
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
    sqlite_verbs,
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
    """`is_costly` for a quick run."""

    title: str
    measure: Callable[[Options], list[Row]]
    is_costly: bool = False


OnStore = Callable[[Store, Options], list[Row]]

ON_SERVERS: Final[Sequence[tuple[str, str, OnStore, bool]]] = (
    ("drain", "a worker drains", drain.drains, False),
    ("enqueue", "sending", sending.sendings, False),
    ("latency", "how soon", latency.latencies, False),
    ("plans", "planned jobs", latency.plans, False),
    ("load", "under load", loads.loaded, False),
    ("threads", "plain functions in threads", drain.threads, False),
    ("workers", "several worker processes", fleet.workers, True),
    ("sleeping", "jobs that sleep", fleet.sleeping, True),
    ("concurrency", "by jobs at a time", drain.concurrencies, True),
    ("payload", "by the payload's size", fleet.payloads, True),
    ("backlogs", "by the queue's length", drain.backlogs, True),
    ("depth", "a worker drains, much beside", drain.depths, True),
    ("bytes", "what a queued job takes", sizes.sizes, False),
    ("idle", "nothing to do", idle.idleness, True),
    ("herd", "a lone job beside many idle workers", herd.herds, True),
    ("schedules", "schedules, none due", schedules.idleness, True),
    ("start", "starting a worker", starting.starts, False),
    ("flows", "flows", flows.on_server, True),
)


def _workloads() -> dict[str, Workload]:
    found = {
        "drain": Workload("memory and SQLite: a worker drains", worker_runs.drains),
        "enqueue": Workload("memory and SQLite: sending", worker_runs.enqueues),
        "latency": Workload("memory and SQLite: an idle worker starts a job", worker_runs.latencies),
        "depth": Workload("memory and SQLite: a worker drains, much beside", worker_runs.depths, is_costly=True),
        "verbs": Workload("SQLite: verbs", sqlite_verbs.measure),
        "bytes": Workload("SQLite: what a queued job takes", sqlite_verbs.sizes),
        "schedules": Workload("how late schedules fire", schedules.lags, is_costly=True),
        "transactions": Workload("jobs in the sender's own transaction", transactions.transactions, is_costly=True),
        "limits": Workload("what limits and turns cost", limits.drains),
        "telemetry": Workload("what telemetry costs", telemetry.costs),
        "flows": Workload("memory and SQLite: flows", flows.flows, is_costly=True),
        "console-pages": Workload("pages of the console, a million jobs", console_pages.pages, is_costly=True),
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
"""Those that print, and keep, what they have found in a form of their own; only run when they are named."""
