"""How long after a worker was killed its jobs run again, with default settings: a session lives for 20 s after its last heartbeat."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks import results
from benchmarks.held import Began, hold, until
from benchmarks.loops import run_in_fastest_loop
from benchmarks.places import PLACES, Place
from benchmarks.processes import using, workers
from benchmarks.report import machine, percentile
from taskflow import enqueue

NAME: Final = "recovery"

ROUNDS: Final = 4
VICTIMS: Final = 50
SURVIVORS: Final = 2
EACH_HOLDS: Final = 10

KILL_SPAN: Final = 5.0
"""Seconds, as long as the heartbeat interval, so that kills are spread evenly over it."""

TARGET: Final = 25.0
"""Seconds from a kill to the first line of the last of the worker's jobs, at the 99th percentile."""

TIMEOUT: Final = 120.0


@dataclass(frozen=True)
class Recovery:
    """The recovery of one killed worker: seconds until the first and the last of its jobs ran again."""

    store: str
    round: int
    first: float
    last: float


def recovery(arguments: argparse.Namespace) -> None:
    """Print a table, and write it and the raw figures to results/recovery."""
    recoveries = [one for name, place in PLACES.items() for one in _of(name, place, arguments.under)]
    results.write_csv(results.folder(NAME) / "kills.csv", [asdict(one) for one in recoveries])
    table = f"{_title()}\n\n{_table(recoveries)}\n\n{_verdict(recoveries)}"
    print(f"\n{table}")
    results.publish(NAME, table, has_plot=False)


def _of(name: str, place: Place, under: Path | None) -> list[Recovery]:
    with ExitStack() as stack:
        url, folder = stack.enter_context(place(under)), stack.enter_context(TemporaryDirectory())
        rounds = [run_in_fastest_loop(_round(url, Path(folder, f"ledger-{number}"))) for number in range(ROUNDS)]
    return [Recovery(name, number, *seconds) for number, found in enumerate(rounds) for seconds in found]


async def _round(url: str, ledger: Path) -> list[tuple[float, float]]:
    """Kill the victims once every job runs on one of them. The survivors start after that, so they run only jobs of dead workers."""
    jobs = VICTIMS * EACH_HOLDS
    async with using(url) as broker, AsyncExitStack() as stack:
        victims = await stack.enter_async_context(workers(url, VICTIMS, broker, "--concurrency", str(EACH_HOLDS)))
        await enqueue(hold.bind(str(ledger), number) for number in range(jobs))
        held = await until(ledger, lambda began: len(began) >= jobs, TIMEOUT)
        await stack.enter_async_context(workers(url, SURVIVORS, broker))
        killed_at = await _kill(victims)
        began = await until(ledger, lambda began: {run.number for run in began if run.epoch > 1} == set(range(jobs)), TIMEOUT)
    return _seconds(held, began, killed_at)


async def _kill(victims: Sequence[int]) -> Mapping[int, float]:
    """Kill each worker at a random time. Return the times."""
    killed_at = dict[int, float]()

    async def kill(pid: int) -> None:
        await asyncio.sleep(KILL_SPAN * random.random())
        killed_at[pid] = time.monotonic()
        os.kill(pid, signal.SIGKILL)

    await asyncio.gather(*map(kill, victims))
    return killed_at


def _seconds(held: Sequence[Began], began: Sequence[Began], killed_at: Mapping[int, float]) -> list[tuple[float, float]]:
    again = dict[int, float]()
    for run in began:
        if run.epoch > 1:
            again.setdefault(run.number, run.at)
    waits = {pid: [again[run.number] - at for run in held if run.pid == pid] for pid, at in killed_at.items()}
    return [(min(seconds), max(seconds)) for seconds in waits.values() if seconds]


# --- output --------------------------------------------------------------------------------------------------------


def _title() -> str:
    return (
        f"{machine()}: {ROUNDS * VICTIMS} workers killed by SIGKILL, {VICTIMS} within {KILL_SPAN:g} s at a time, each with "
        f"{EACH_HOLDS} jobs, beside {SURVIVORS} survivors; default settings. Seconds from the kill to the first line."
    )


def _table(recoveries: Sequence[Recovery]) -> str:
    rows = []
    for name in PLACES:
        lasts = [one.last for one in recoveries if one.store == name]
        firsts = [one.first for one in recoveries if one.store == name]
        rows.append(
            (name, len(lasts), statistics.median(firsts), statistics.median(lasts), percentile(lasts, 0.99), min(firsts), max(lasts))
        )
    return results.markdown(("store", "kills", "first job p50", "last job p50", "p99", "least of all", "most of all"), rows)


def _verdict(recoveries: Sequence[Recovery]) -> str:
    worst = max(percentile([one.last for one in recoveries if one.store == name], 0.99) for name in PLACES)
    return f"At the 99th percentile at most {worst:.1f} s (target: {TARGET:g}). Target {'met' if worst <= TARGET else 'missed'}."
