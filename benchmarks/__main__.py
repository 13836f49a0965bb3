"""Our broker and worker beside bare loops, in one run. Figures count as ratios; medians of the repeats."""

from __future__ import annotations

import argparse
import platform
import sqlite3
from collections.abc import Callable

from benchmarks import redis_costs, redis_drain, redis_latency, redis_profile, redis_scripts, redis_sending, sqlite_verbs, worker_runs
from benchmarks.report import Row, print_table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="medians of so many (default: 3)")
    parser.add_argument("--jobs", type=int, metavar="N", help="of redis-leftovers, redis-scripts and redis-profile")
    parser.add_argument("--rate", type=float, default=8_000, metavar="N", help="jobs a second for redis-load (default: 8000)")
    known = f"of {', '.join(WORKLOADS)}; by default those before redis"
    parser.add_argument("only", nargs="*", choices=[[], *WORKLOADS], metavar="WORKLOAD", help=known)
    arguments = parser.parse_args()
    print(f"CPython {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.machine()}; SQLite syncs each commit")
    for name in arguments.only or [name for name in WORKLOADS if not name.startswith("redis")]:
        WORKLOADS[name](arguments)


def _bytes(arguments: argparse.Namespace) -> None:
    size = sqlite_verbs.bytes_a_job()
    print(f"\nbytes a queued job on SQLite (payload 200 bytes, {sqlite_verbs.SIZED_JOBS:,} jobs): {size:.0f}")


def _table(title: str, unit: str, measure: Callable[[int], list[Row]], digits: int | None = None) -> Workload:
    return lambda arguments: print_table(title, unit, measure(arguments.repeats), digits)


Workload = Callable[[argparse.Namespace], None]

WORKLOADS: dict[str, Workload] = {
    "verbs": _table("verbs on SQLite", "jobs/s", sqlite_verbs.measure, 0),
    "drain": _table("a worker drains", "jobs/s", worker_runs.drains, 0),
    "enqueue": _table("sending", "jobs/s", worker_runs.enqueues, 0),
    "latency": _table("an idle worker starts a job", "ms", worker_runs.latencies, 3),
    "bytes": _bytes,
    "redis-drain": _table("a worker drains Redis", "", redis_drain.drains),
    "redis-depth": _table("a worker drains Redis, much beside", "", redis_drain.depths),
    "redis-enqueue": _table("sending to Redis", "", redis_sending.sendings),
    "redis-latency": _table("how soon, on Redis", "", redis_latency.latencies),
    "redis-load": lambda arguments: print_table("under load", "", redis_latency.loaded(arguments.repeats, arguments.rate), None),
    "redis-bytes": _table("memory of Redis", "", redis_costs.sizes),
    "redis-leftovers": lambda arguments: redis_costs.leftovers(arguments.jobs or 100_000),
    "redis-idle": _table("nothing to do on Redis", "", redis_costs.idleness),
    "redis-scripts": lambda arguments: redis_scripts.hold_times(arguments.jobs or 1_000_000),
    "redis-profile": lambda arguments: redis_profile.profile(arguments.jobs or 300_000),
}

if __name__ == "__main__":
    main()
