"""Runs of limited jobs under workers that are killed, judged from outside: by the ledger in which each run writes its begin and end."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from tests.cli.processes import TIMEOUT, Running, Shell, until

WORKERS: Final = 3
KEYS: Final = 100
MOST: Final = {"three": 3, "one": 1}
"""The number of each job's limit. `three` has one limit for all of its runs, and `one` has one for each of a hundred keys."""

_TASKS: Final = """
import asyncio, os, random
from taskflow import Concurrency, job

ledger = os.open("ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
me = os.getpid()

async def run(kind: str, key: int, n: int) -> None:
    os.write(ledger, f"begin {me} {kind} {key} {n}\\n".encode())
    try:
        await asyncio.sleep(random.choice((0, 0, 0, 0.002)))
    finally:
        os.write(ledger, f"end {me} {kind} {key} {n}\\n".encode())

@job(limits=[Concurrency(3)], max_attempts=1000)
async def three(n: int) -> None:
    await run("three", 0, n)

@job(limits=[Concurrency(1, key="key")], max_attempts=1000)
async def one(n: int, key: int) -> None:
    await run("one", key, n)
"""

_SEND: Final = """
import sys
from taskflow import enqueue_sync
from tasks import one, three
first, number, keys = map(int, sys.argv[1:])
enqueue_sync(three.bind(n) if n % 4 == 0 else one.bind(n, n % keys) for n in range(first, first + number))
"""


class Judged(NamedTuple):
    """What the ledger shows. `over` is how often a run began beside as many others as its limit allows."""

    runs: int
    jobs: int
    over: int
    most: Counter[str]


def judge(lines: Iterable[str]) -> Judged:
    """Read a ledger. Its lines are in the order in which they were written. A line says where a process was dead, so its runs had ended."""
    open_runs: dict[tuple[str, str], set[tuple[str, str]]] = {}
    most, runs, over, jobs = Counter[str](), 0, 0, set[str]()
    for line in lines:
        event, process, *rest = line.split()
        if event == "killed":
            for each in open_runs.values():
                each.difference_update([run for run in each if run[0] == process])
            continue
        kind, key, n = rest
        at_once = open_runs.setdefault((kind, key), set())
        if event == "end":
            at_once.discard((process, n))
            continue
        at_once.add((process, n))
        runs += 1
        jobs.add(n)
        over += len(at_once) > MOST[kind]
        most[kind] = max(most[kind], len(at_once))
    return Judged(runs, len(jobs), over, most)


def run_under_kills(shell: Shell, number: int, *, kills: int, portion: int = 20_000) -> Judged:
    """Run jobs by three workers. Each time a part of them has run, one of the workers is killed and replaced."""
    if shell.environment["TASKFLOW_BROKER"].startswith("sqlite"):
        shell.environment["TASKFLOW_BROKER"] += "?shared=1"
    shell.write("tasks.py", _TASKS)
    shell.write("send.py", _SEND)
    chance, sent = random.Random(number), 0
    workers = list[Running]()
    while sent < number:
        more = min(portion, number - sent)
        shell.run("send.py", str(sent), str(more), str(KEYS))
        sent += more
        workers = workers or [_worker(shell) for _ in range(WORKERS)]
        of_portion = kills * more // number
        for kill in range(of_portion):
            target = more - more * (kill + 1) / (of_portion + 1)
            until(lambda target=target: _left(shell) <= target, timeout=2 * TIMEOUT)  # type: ignore[misc]
            time.sleep(chance.uniform(0, 0.05))
            _kill(shell, workers, chance.randrange(WORKERS))
    until(lambda: _left(shell) == 0, timeout=2 * TIMEOUT)
    for worker in workers:
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0, worker.said
        assert "has ended" not in worker.said, worker.said
    return judge(shell.ledger())


def _kill(shell: Shell, workers: list[Running], place: int) -> None:
    killed = workers[place]
    killed.signal(signal.SIGKILL)
    killed.end()
    with (shell.folder / "ledger").open("a") as ledger:
        ledger.write(f"killed {killed.process.pid}\n")
    workers[place] = _worker(shell)


def _worker(shell: Shell) -> Running:
    return shell.worker("--ttl", "3", "--concurrency", "20")


def _left(shell: Shell) -> int:
    counts = shell.counts()
    return counts.total() - counts["succeeded"] - counts["failed"]
