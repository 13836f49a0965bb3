"""Where CPU time goes while a worker drains Redis: the worker's functions by their own time, and the server's scripts by call time.

The worker is `taskflow worker --drain` in this process, sampled some hundred times per second of CPU time. Time in a C function counts
for the line of Python that called it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Final

from benchmarks.loops import run_in_fastest_loop
from benchmarks.processes import ROOT, using
from benchmarks.redis_scripts import SCRIPTS
from benchmarks.servers import RedisServer, ServerLoad
from benchmarks.tasks import noop
from taskflow import enqueue
from taskflow.broker.redis.scripts import Scripts
from taskflow.cli.main import main as taskflow
from taskflow.model.rules import Rules

EVERY: Final = 0.001
"""Seconds, if the kernel's clock is that fine; many kernels tick every 0.004 s."""

SHOWN: Final = 25


class Sampler:
    """Counts where the main thread is at each tick of the process's CPU time."""

    def __init__(self) -> None:
        self.by_function: Counter[str] = Counter()
        self.by_line: Counter[str] = Counter()
        self.total = 0

    def __enter__(self) -> Sampler:
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)
        return self

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _sample(self, number: int, frame: FrameType | None) -> None:
        if frame is not None:
            code, place = frame.f_code, _short(frame.f_code.co_filename)
            self.total += 1
            self.by_function[f"{code.co_qualname} ({place}:{code.co_firstlineno})"] += 1
            self.by_line[f"{place}:{frame.f_lineno} in {code.co_qualname}"] += 1


def profile(jobs: int) -> None:
    """Profile a drain, and print the results."""
    with RedisServer() as server:
        run_in_fastest_loop(_fill(server.url, jobs))
        _log_all(server)
        before = server.load()
        cpu = _cpu()
        with Sampler() as sampler:
            taskflow(["worker", "benchmarks.tasks", "--broker", server.url, "--log-level", "warning", "--drain"])
        spent, done = _cpu() - cpu, server.load().since(before)
        scripts = _by_script(server)
    _print_samples(sampler, spent, jobs)
    _print_server(done, scripts, jobs)


async def _fill(url: str, jobs: int) -> None:
    async with using(url):
        await enqueue(noop.bind() for _ in range(jobs))


def _log_all(server: RedisServer) -> None:
    server.client.config_set("slowlog-max-len", 1_000_000)
    server.client.config_set("slowlog-log-slower-than", 0)


def _cpu() -> float:
    times = os.times()
    return times.user + times.system


def _by_script(server: RedisServer) -> dict[str, tuple[int, int]]:
    """Return the number of calls and the microseconds of each script."""
    scripts = Scripts(Rules())
    names = {scripts[name].sha: name for name in SCRIPTS}
    found: dict[str, tuple[int, int]] = {}
    for entry in server.client.slowlog_get(1_000_000):
        words = entry["command"].split(b" ")
        if words[0] == b"EVALSHA" and words[1] in names:
            calls, spent = found.get(names[words[1]], (0, 0))
            found[names[words[1]]] = calls + 1, spent + entry["duration"]
    return found


def _print_samples(sampler: Sampler, spent: float, jobs: int) -> None:
    per_sample = 1e6 * spent / jobs / max(1, sampler.total)
    print(f"\nworker, {jobs:,} jobs: {1e6 * spent / jobs:.1f} µs of CPU a job, start and end included; own time by function, µs a job")
    for place, times in sampler.by_function.most_common(SHOWN):
        print(f"  {times * per_sample:6.2f} {100 * times / sampler.total:5.1f} %  {place}")
    print("by line, µs a job")
    for place, times in sampler.by_line.most_common(SHOWN):
        print(f"  {times * per_sample:6.2f} {100 * times / sampler.total:5.1f} %  {place}")


def _print_server(done: ServerLoad, scripts: dict[str, tuple[int, int]], jobs: int) -> None:
    print(f"\nserver: {1e6 * done.cpu / jobs:.1f} µs of CPU a job; the scripts, their own commands included, µs a job")
    for name, (calls, spent) in sorted(scripts.items(), key=lambda item: -item[1][1]):
        print(f"  {spent / jobs:6.2f}  {name}: {calls:,} calls of {spent / calls:,.0f} µs")
    print("commands that scripts called, µs a job")
    for name, usec in sorted(done.usec.items(), key=lambda item: -item[1]):
        if usec / jobs >= 0.01 and name not in ("evalsha", "eval"):
            print(f"  {usec / jobs:6.2f}  {name}: {done.calls.get(name, 0):,} calls")


def _short(path: str) -> str:
    for folder in (str(ROOT), *sys.path, *(str(Path(asyncio.__file__).parents[1]),)):
        if folder and path.startswith(folder + "/"):
            return path[len(folder) + 1 :]
    return path


if __name__ == "__main__":
    profile(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
