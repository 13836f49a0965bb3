"""Our broker and worker beside bare loops, in one run. Figures count as ratios; medians of the repeats."""

from __future__ import annotations

import argparse
import platform
import sqlite3
from collections.abc import Callable

from benchmarks import sqlite_verbs, worker_runs
from benchmarks.report import print_table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="medians of so many (default: 3)")
    parser.add_argument("only", nargs="*", choices=[[], *WORKLOADS], metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; all by default")
    arguments = parser.parse_args()
    print(f"CPython {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.machine()}; SQLite syncs each commit")
    for name in arguments.only or WORKLOADS:
        WORKLOADS[name](arguments.repeats)


def _bytes(repeats: int) -> None:
    size = sqlite_verbs.bytes_a_job()
    print(f"\nbytes a queued job on SQLite (payload 200 bytes, {sqlite_verbs.SIZED_JOBS:,} jobs): {size:.0f}")


WORKLOADS: dict[str, Callable[[int], None]] = {
    "verbs": lambda repeats: print_table("verbs on SQLite", "jobs/s", sqlite_verbs.measure(repeats)),
    "drain": lambda repeats: print_table("a worker drains", "jobs/s", worker_runs.drains(repeats)),
    "enqueue": lambda repeats: print_table("sending", "jobs/s", worker_runs.enqueues(repeats)),
    "latency": lambda repeats: print_table("an idle worker starts a job", "ms", worker_runs.latencies(repeats), digits=3),
    "bytes": _bytes,
}

if __name__ == "__main__":
    main()
