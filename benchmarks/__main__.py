"""`python -m benchmarks`: our verbs on SQLite beside the bare loop, in one run. `--repeats N` for steadier medians."""

from __future__ import annotations

import argparse
import platform
import sqlite3

from benchmarks import sqlite_verbs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="medians of so many (default: 3)")
    arguments = parser.parse_args()
    print(f"CPython {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.machine()}; synchronous=FULL on both sides")
    print(f"{'SQLite':32} {'ours /s':>10} {'bare /s':>10} {'ratio':>6}")
    for row in sqlite_verbs.measure(arguments.repeats):
        print(f"{row.what:32} {row.ours:>10,.0f} {row.bare:>10,.0f} {row.ratio:>6.2f}")
    print(f"bytes a queued job (payload 200 bytes, {sqlite_verbs.SIZED_JOBS:,} jobs): {sqlite_verbs.bytes_a_job():.0f}")


if __name__ == "__main__":
    main()
