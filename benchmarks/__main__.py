"""Measure taskflow's brokers and worker beside bare loops and peers. The ratios count; figures are medians of the repeats."""

from __future__ import annotations

import argparse
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks import charts, results, summary
from benchmarks.kept import Kept, conditions_of, keep, peers_of, read_all
from benchmarks.options import Options
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.environments import default_cache, forget, own_python
from benchmarks.peers.rivals import Rivals
from benchmarks.places import PLACES
from benchmarks.processes import PYTHON
from benchmarks.report import machine
from benchmarks.tables import tables
from benchmarks.workloads import STUDIES, WORKLOADS

WITH_WORKERS: Final = ("redis", "hiredis", "asyncpg", "msgpack", "msgspec", "anyio", "cronsim", "uvloop", "typing-extensions")
"""The packages that `taskflow-jobs[fast,postgres]` installs."""

QUICK: Final = 0.2
"""The share of the usual jobs in a quick run."""

QUICK_PEERS: Final = frozenset({"huey", "dramatiq", "taskiq", "saq", "bullmq", "pgqueuer", "oban", "graphile-worker"})
"""The fastest and best-known peers."""


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers and peers end too
    arguments = _parser().parse_args()
    if arguments.forget:
        forget(arguments.cache)
        return
    folder = results.FOLDER if arguments.keep else arguments.into
    print(machine(), flush=True)
    if not arguments.summary:
        os.environ[PYTHON] = str(own_python(WITH_WORKERS, arguments.cache))
    for name in _chosen(arguments):
        if name in STUDIES:
            STUDIES[name](arguments)
        else:
            _measure(name, _options(arguments), folder, is_kept=arguments.keep)
    _summarize(folder, is_kept=arguments.keep)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("only", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)} (default: all), or {', '.join(STUDIES)}")
    parser.add_argument("--quick", action="store_true", help="one run with a fifth of the jobs and fewer peers, without the slow workloads")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="measure N times and show medians (default: 3)")
    parser.add_argument("--peers", metavar="NAME,...", help="compare with these peers only, or with 'none' (default: all)")
    parser.add_argument("--peer-repeats", type=int, default=3, metavar="N", help="measure each peer at most N times (default: 3)")
    parser.add_argument("--summary", action="store_true", help="measure nothing: only write tables and plots of existing results")
    parser.add_argument("--keep", action="store_true", help="keep results and tables in benchmarks/, and the digest in docs and README.md")
    build = Path("build/benchmarks")
    parser.add_argument(
        "--into", type=Path, default=build, metavar="FOLDER", help=f"the folder for output without --keep (default: {build})"
    )
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="FOLDER", help="the folder for the peers' environments")
    parser.add_argument("--forget", action="store_true", help="remove the peers' environments and exit")
    parser.add_argument("--under", type=Path, metavar="FOLDER", help="a folder on a disk, for PostgreSQL's data (default: /var/tmp)")
    parser.add_argument("--on", choices=[*PLACES], help="the only store of dashboard-pages and admin-pages; not with --keep")
    parser.add_argument("--jobs", type=int, metavar="N", help="jobs of redis-leftovers, redis-scripts, redis-profile and postgres-backlog")
    parser.add_argument("--rate", type=float, metavar="N", help="jobs/s of …-load (default: half a drain's) and of postgres-busy (1000)")
    parser.add_argument("--minutes", type=float, default=15.0, metavar="N", help="the duration of postgres-busy (default: 15)")
    return parser


def _chosen(arguments: argparse.Namespace) -> list[str]:
    known = {*WORKLOADS, *STUDIES}
    if unknown := [name for name in arguments.only if name not in known]:
        raise SystemExit(f"python -m benchmarks: no workload {', '.join(unknown)}; there are {', '.join((*WORKLOADS, *STUDIES))}")
    if arguments.on and arguments.keep:
        raise SystemExit("python -m benchmarks: with --on, the results of the other stores would be lost: leave out --keep")
    if arguments.summary:
        return []
    return arguments.only or [name for name, workload in WORKLOADS.items() if not (arguments.quick and workload.is_costly)]


def _options(arguments: argparse.Namespace) -> Options:
    names = None if arguments.peers is None else frozenset(filter(None, arguments.peers.split(","))) - {"none"}
    if unknown := (names or frozenset()) - {peer.name for peer in PEERS}:
        raise SystemExit(f"python -m benchmarks: no peer {', '.join(unknown)}; there are {', '.join(peer.name for peer in PEERS)}")
    peers = Rivals(cache=arguments.cache.resolve(), names=names, repeats=arguments.peer_repeats)
    options = Options(
        repeats=arguments.repeats, peers=peers, under=arguments.under, jobs=arguments.jobs, rate=arguments.rate, on=arguments.on
    )
    if not arguments.quick:
        return options
    few = replace(peers, names=QUICK_PEERS if names is None else names, repeats=1, share=QUICK, only_rates=True)
    return replace(options, repeats=1, share=QUICK, peers=few)


def _measure(name: str, options: Options, folder: Path, *, is_kept: bool) -> None:
    began, workload = time.monotonic(), WORKLOADS[name]
    rows = workload.measure(options)
    conditions = {**conditions_of(name, options.repeats), "peers": ", ".join(f"{peer} {told}" for peer, told in peers_of(rows).items())}
    kept = Kept(name, workload.title, {key: value for key, value in conditions.items() if value}, rows)
    keep(kept, folder)
    print(f"\n## {workload.title} ({name}, {time.monotonic() - began:.0f} s)\n\n{tables(rows)}", flush=True)
    if is_kept:
        _write(kept, folder)


def _write(kept: Kept, folder: Path) -> None:
    """Draw the workload's plots, and write its block of the README."""
    plots = [f"![{kept.workload}](results/{path.name})" for path in charts.draw(kept, folder)]
    results.write_block(kept.workload, "\n\n".join([summary.workload(kept), *plots]))


def _summarize(folder: Path, *, is_kept: bool) -> None:
    all_kept = read_all(folder)
    for kept in all_kept.values():
        if is_kept:
            _write(kept, folder)
        else:
            charts.draw(kept, folder)
    text = f"{summary.targets_table(all_kept)}\n\n{summary.studies(results.FOLDER)}"
    print(f"\n## Targets\n\n{text}", flush=True)
    if is_kept:
        results.write_block("targets", text)
        results.write_block("peers", summary.peers_table())
        results.write_block("digest", summary.digest(all_kept), results.PERFORMANCE_PAGE)
        charts.draw_throughput(all_kept, results.ROOT_README.parent / summary.CHART)
        results.write_block("headlines", summary.headlines(all_kept), results.ROOT_README)
        return
    report = [f"# Benchmarks\n\n{text}", *map(summary.workload, all_kept.values())]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text("\n\n".join(report) + "\n")
    print(f"\n{folder / 'report.md'}")


if __name__ == "__main__":
    main()
