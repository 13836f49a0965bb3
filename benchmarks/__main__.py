"""Our broker and worker beside bare loops, in one run. Figures count as ratios; medians of the repeats."""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import (
    backlog,
    drain,
    latency,
    postgres_busy,
    postgres_server,
    recovery,
    redis_costs,
    redis_profile,
    redis_scripts,
    results,
    rolling,
    sending,
    sizes,
    sqlite_verbs,
    worker_runs,
)
from benchmarks.report import Row, machine, print_table
from benchmarks.stores import REDIS, Store, postgres

SERVERS: Final = ("redis", "postgres", "recovery", "rolling")
"""How the names begin of what starts one."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="medians of so many (default: 3)")
    parser.add_argument("--jobs", type=int, metavar="N", help="of redis-leftovers, redis-scripts, redis-profile and postgres-backlog")
    parser.add_argument(
        "--rate", type=float, metavar="N", help="jobs a second of redis-load (8000), postgres-load (5000), postgres-busy (1000)"
    )
    parser.add_argument("--minutes", type=float, default=15.0, metavar="N", help="of postgres-busy (default: 15)")
    parser.add_argument("--under", type=Path, metavar="FOLDER", help="of a disk, for the data of PostgreSQL (default: /var/tmp)")
    parser.add_argument(
        "--keep", action="store_true", help="put the tables into benchmarks/README.md; postgres-busy and -backlog always do"
    )
    known = f"of {', '.join(WORKLOADS)}; by default those that start no server"
    parser.add_argument("only", nargs="*", choices=[[], *WORKLOADS], metavar="WORKLOAD", help=known)
    arguments = parser.parse_args()
    print(f"{machine()}, SQLite {sqlite3.sqlite_version}; SQLite syncs each commit")
    for name in arguments.only or [name for name in WORKLOADS if not name.startswith(SERVERS)]:
        table = WORKLOADS[name](arguments)
        if table is not None and arguments.keep:
            results.write_block(name, f"{_conditions(name, arguments.repeats)}\n\n```\n{table}\n```")


def _conditions(name: str, repeats: int) -> str:
    server = f"{postgres_server.the_version()}, fsync on; " if name.startswith("postgres") else ""
    return f"{server}{machine()}; {f'medians of {repeats}' if repeats > 1 else 'a single run'}."


def _bytes(arguments: argparse.Namespace) -> None:
    size = sqlite_verbs.bytes_a_job()
    print(f"\nbytes a queued job on SQLite (payload 200 bytes, {sqlite_verbs.SIZED_JOBS:,} jobs): {size:.0f}")


def _table(title: str, unit: str, measure: Callable[[int], list[Row]], digits: int | None = None) -> Workload:
    return lambda arguments: print_table(title, unit, measure(arguments.repeats), digits)


def _on_redis(title: str, measure: Callable[[Store, int], list[Row]]) -> Workload:
    return lambda arguments: print_table(f"Redis: {title}", "", measure(REDIS, arguments.repeats), None)


def _on_postgres(title: str, measure: Callable[[Store, int], list[Row]]) -> Workload:
    return lambda arguments: print_table(f"PostgreSQL: {title}", "", measure(postgres(arguments.under), arguments.repeats), None)


def _redis_load(arguments: argparse.Namespace) -> str:
    rows = latency.loaded(REDIS, arguments.repeats, arguments.rate or 8_000)
    return print_table("Redis: under load", "", rows, None)


def _postgres_load(arguments: argparse.Namespace) -> str:
    rows = latency.loaded(postgres(arguments.under), arguments.repeats, arguments.rate or 5_000)
    return print_table("PostgreSQL: under load", "", rows, None)


Workload = Callable[[argparse.Namespace], str | None]
"""The table that it has printed, where it is one that can be kept."""

WORKLOADS: dict[str, Workload] = {
    "verbs": _table("verbs on SQLite", "jobs/s", sqlite_verbs.measure, 0),
    "drain": _table("a worker drains", "jobs/s", worker_runs.drains, 0),
    "enqueue": _table("sending", "jobs/s", worker_runs.enqueues, 0),
    "latency": _table("an idle worker starts a job", "ms", worker_runs.latencies, 3),
    "bytes": _bytes,
    "redis-drain": _on_redis("a worker drains", drain.drains),
    "redis-depth": _on_redis("a worker drains, much beside", drain.depths),
    "redis-enqueue": _on_redis("sending", sending.sendings),
    "redis-latency": _on_redis("how soon", latency.latencies),
    "redis-load": _redis_load,
    "redis-bytes": _on_redis("memory", sizes.sizes),
    "redis-leftovers": lambda arguments: redis_costs.leftovers(arguments.jobs or 100_000),
    "redis-idle": _table("nothing to do on Redis", "", redis_costs.idleness),
    "redis-scripts": lambda arguments: redis_scripts.hold_times(arguments.jobs or 1_000_000),
    "redis-profile": lambda arguments: redis_profile.profile(arguments.jobs or 300_000),
    "postgres-drain": _on_postgres("a worker drains", drain.drains),
    "postgres-depth": _on_postgres("a worker drains, much beside", drain.depths),
    "postgres-backlog": backlog.backlog,
    "postgres-enqueue": _on_postgres("sending", sending.sendings),
    "postgres-latency": _on_postgres("how soon", latency.latencies),
    "postgres-load": _postgres_load,
    "postgres-bytes": _on_postgres("tables with their indexes", sizes.sizes),
    "postgres-busy": postgres_busy.busy,
    "recovery": recovery.recovery,
    "rolling": rolling.rolling,
}

if __name__ == "__main__":
    main()
