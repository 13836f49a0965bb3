"""Runs a peer on a temporary server: starts its program, watches it, and ends it in any case."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from benchmarks.marks import VARIABLE, Marks, marks_of
from benchmarks.peers.catalogue import Peer
from benchmarks.peers.environments import HERE, node_folder_of, python_of
from benchmarks.processes import ROOT, cpu_of_session, memory_of_session
from benchmarks.report import ContenderFailed
from benchmarks.stores import Server, Store

CANNOT: Final = 3
TO_BEGIN: Final = 30.0
TO_END: Final = 10.0
CHECK_INTERVAL: Final = 0.01
WARM_UP: Final = 8
MAX_SAID: Final = 100_000

TO_REST: Final = 3.0

TO_BEGIN_EACH: Final = 0.5
"""Additional seconds for each of many workers that start at once."""

LONE_INTERVAL: Final = 0.02

SETTLED_IN: Final = 0.3
"""Seconds in which the last jobs are settled, so that the CPU time includes that."""


@dataclass(frozen=True)
class Bench:
    """A peer, a running server, and the environment of the peer's program."""

    peer: Peer
    server: Server
    command: Sequence[str]
    environment: Mapping[str, str]

    def tell(self, *arguments: object, within: float) -> Any:
        """Return the program's answer to a command. Raises ContenderFailed if it fails, doesn't support the command, or takes too long."""
        try:
            done = subprocess.run(
                [*self.command, *map(str, arguments)], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=within
            )
        except subprocess.TimeoutExpired as error:
            raise ContenderFailed(f"its `{arguments[0]}` took more than {within:.0f} s") from error
        if done.returncode == CANNOT:
            raise ContenderFailed(_last_line(done.stderr))
        if done.returncode:
            raise ContenderFailed(f"its `{arguments[0]}` failed: {_last_line(done.stderr)}")
        return json.loads(done.stdout.splitlines()[-1])

    @contextmanager
    def at_work(self, concurrency: int) -> Iterator[Worker]:
        """Run a worker process. It is ended with all its children."""
        with tempfile.TemporaryFile("a+b") as told:
            process = subprocess.Popen(
                [*self.command, "work", str(concurrency)],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield Worker(process, told)
            finally:
                _end(process)


@dataclass(frozen=True)
class Worker:
    process: subprocess.Popen[bytes]
    told: IO[bytes]

    def said(self) -> str:
        """Return the worker's output, without moving its file position."""
        return os.pread(self.told.fileno(), MAX_SAID, 0).decode(errors="replace")

    @property
    def cpu(self) -> float:
        return cpu_of_session(self.process.pid)

    def wait_for(self, condition: Callable[[], bool], what: str, within: float) -> None:
        """Wait until the condition is true. Raises ContenderFailed if the worker ends, or after `within` seconds."""
        give_up_at = time.monotonic() + within
        while not condition():
            if self.process.poll() is not None:
                raise ContenderFailed(f"its worker ended with {self.process.returncode}: {_last_line(self.said())}")
            if time.monotonic() > give_up_at:
                raise ContenderFailed(f"{what} within {within:.0f} s")
            time.sleep(CHECK_INTERVAL)


@contextmanager
def a_bench(peer: Peer, store: Store, cache: Path, marks: Marks) -> Iterator[Bench]:
    """Start a server for the peer, and create the peer's tables."""
    with store.start() as server:
        environment = {
            **os.environ,
            VARIABLE: str(marks.path),
            "PEER_URL": server.dsn,
            "PEER_VARIANT": peer.variant,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        bench = Bench(peer, server, command_of(peer, cache), environment)
        bench.tell("set-up", within=TO_BEGIN)
        yield bench


def command_of(peer: Peer, cache: Path) -> list[str]:
    """Return the command of a peer's program. Creates the peer's environment if necessary."""
    if peer.in_node:
        folder = node_folder_of(peer.program, cache)
        for file in (HERE / "node" / peer.program / "peer.mjs", HERE / "node" / "contract.mjs", HERE / "node" / "marks.mjs"):
            shutil.copy(file, folder)  # Node searches for modules beside the program
        return ["node", str(folder / "peer.mjs")]
    return [str(python_of(peer.program, cache, peer.python)), "-m", f"benchmarks.peers.programs.with_{peer.program}"]


@contextmanager
def marked_bench(peer: Peer, store: Store, cache: Path, jobs: int) -> Iterator[tuple[Bench, Marks]]:
    with marks_of(jobs) as marks, a_bench(peer, store, cache, marks) as bench:
        yield bench, marks


def drain(peer: Peer, store: Store, cache: Path, jobs: int, concurrency: int, within: float = 60.0) -> Mapping[str, float]:
    """Drain the queue with the peer's worker. The rate is measured between the first lines of the first and the last job."""
    with marked_bench(peer, store, cache, jobs) as (bench, marks):
        bench.tell("fill", jobs, within=within)
        bench.server.rest()
        with bench.at_work(concurrency) as worker:
            worker.wait_for(lambda: marks.ran > 0, "its worker began no job", TO_BEGIN)
            cpu, server, done = worker.cpu, bench.server.cost().cpu, marks.ran
            worker.wait_for(lambda: marks.ran >= jobs, "its worker did not run all jobs", within)
            time.sleep(SETTLED_IN)
            spent, server_spent, left = worker.cpu - cpu, bench.server.cost().cpu - server, jobs - done
        marks.check()
        figures = {"jobs/s": marks.rate}
    if left < jobs / 2:
        return figures  # most jobs were done before the first check, so their CPU time is unknown
    return {**figures, "worker CPU µs/job": 1e6 * spent / left, "server CPU µs/job": 1e6 * server_spent / left}


def flow(peer: Peer, store: Store, cache: Path, jobs: int, within: float = 120.0) -> Mapping[str, float]:
    """Let its worker drain a group and the job that awaits it, all queued. The rate is that from the first job's first line to the last."""
    with marked_bench(peer, store, cache, jobs) as (bench, marks):
        bench.tell("flow", jobs, within=within)
        bench.server.rest()
        with bench.at_work(peer.concurrency) as worker:
            worker.wait_for(lambda: marks.ran >= jobs, "its worker did not run the whole flow", within)
        marks.check()
        return {"jobs/s": marks.rate}


def joins(peer: Peer, store: Store, cache: Path, jobs: int, flows: int) -> list[float]:
    """Return the seconds from the first line of a group's last job to that of the job that awaits the group, for several flows in turn."""
    lags = list[float]()
    with marked_bench(peer, store, cache, jobs) as (bench, marks), bench.at_work(peer.concurrency) as worker:
        for _ in range(flows):
            marks.clear()
            bench.tell("flow", jobs, within=TO_BEGIN)
            worker.wait_for(lambda: marks.ran >= jobs, "its worker did not run the whole flow", TO_BEGIN)
            *members, join = marks.stamps()
            lags.append(join - max(members))
    return lags


def fill(peer: Peer, store: Store, cache: Path, jobs: int) -> Mapping[str, float]:
    """Send jobs in bulk, as fast as the peer can."""
    with marked_bench(peer, store, cache, jobs) as (bench, _):
        return _floats(bench.tell("fill", jobs, within=60.0))


def send_by_callers(peer: Peer, store: Store, cache: Path, jobs: int, callers: int) -> Mapping[str, float]:
    with marked_bench(peer, store, cache, jobs) as (bench, _):
        return _floats(bench.tell("callers", jobs, callers, within=60.0))


def start_one_by_one(peer: Peer, store: Store, cache: Path, jobs: int, every: float) -> list[float]:
    """Return for each job the seconds from just before it is sent to its first line, on an idle worker."""
    with marked_bench(peer, store, cache, jobs + WARM_UP) as (bench, marks), bench.at_work(peer.concurrency) as worker:
        _warm_up(bench, worker, marks)
        began = bench.tell("one-by-one", jobs, every, within=jobs * (every + 0.1) + TO_BEGIN)
        worker.wait_for(lambda: marks.ran >= jobs, "its worker did not run all jobs", TO_BEGIN)
        return [start - begin for start, begin in zip(marks.stamps(), began, strict=False)]


def launch(peer: Peer, store: Store, cache: Path) -> float:
    """Return the seconds from the launch of the peer's worker to the first line of a job that was already queued."""
    with marked_bench(peer, store, cache, WARM_UP) as (bench, marks):
        bench.tell("fill", WARM_UP, within=TO_BEGIN)
        began = time.monotonic()
        with bench.at_work(peer.concurrency) as worker:
            worker.wait_for(lambda: marks.ran > 0, "its worker began no job", TO_BEGIN)
            return min(filter(None, marks.stamps())) - began


def idle(peer: Peer, store: Store, cache: Path, seconds: float) -> tuple[float, float, float]:
    """Return the cost of an idle worker: commands or transactions, CPU seconds, and memory in MB."""
    with marked_bench(peer, store, cache, WARM_UP) as (bench, marks), bench.at_work(peer.concurrency) as worker:
        _warm_up(bench, worker, marks)
        time.sleep(TO_REST)
        before, cpu = bench.server.told(), worker.cpu
        time.sleep(seconds)
        return bench.server.told() - before, worker.cpu - cpu, memory_of_session(worker.process.pid)


def ask(peer: Peer, store: Store, cache: Path, jobs: int, waiters: int, within: float = 45.0) -> tuple[float, list[float]]:
    """Return the seconds of all round trips together, and of each, from sending a job to its result."""
    with marked_bench(peer, store, cache, jobs + WARM_UP) as (bench, marks), bench.at_work(peer.concurrency) as worker:
        _warm_up(bench, worker, marks)
        told = bench.tell("ask", jobs, waiters, within=within)
        return float(told["all"]), list(told["each"])


def lone(peer: Peer, store: Store, cache: Path, workers: int, jobs: int) -> tuple[float, float, list[float]]:
    """Send one job at a time beside many idle workers. Return the calls and the server's CPU seconds per job, without idle workers' shares,
    and the seconds until each job's result or first line."""
    with marked_bench(peer, store, cache, jobs + WARM_UP) as (bench, marks), ExitStack() as stack:
        fleet = [stack.enter_context(bench.at_work(peer.concurrency)) for _ in range(workers)]
        _warm_up(bench, fleet[0], marks, TO_BEGIN + TO_BEGIN_EACH * workers)
        time.sleep(TO_REST + TO_BEGIN_EACH * workers)
        idle, idle_cpu, began = bench.server.told(), bench.server.cost().cpu, time.monotonic()
        time.sleep(TO_REST)
        before, cpu, now = bench.server.told(), bench.server.cost().cpu, time.monotonic()
        idle_calls, idle_cpu = (before - idle) / (now - began), (cpu - idle_cpu) / (now - began)
        began = now
        if peer.asks:
            each = list(bench.tell("ask", jobs, 1, within=60.0)["each"])
        else:
            sent = bench.tell("one-by-one", jobs, LONE_INTERVAL, within=60.0)
            fleet[0].wait_for(lambda: marks.ran >= jobs, "its workers did not run all jobs", TO_BEGIN)
            each = [start - begin for start, begin in zip(marks.stamps(), sent, strict=False)]
        time.sleep(SETTLED_IN)
        took = time.monotonic() - began
        calls, spent = bench.server.told() - before, bench.server.cost().cpu - cpu
        return (calls - idle_calls * took) / jobs, (spent - idle_cpu * took) / jobs, each


def plan(peer: Peer, store: Store, cache: Path, instants: Callable[[], Sequence[float]], within: float = 30.0) -> list[float]:
    """Return for each job the seconds from the planned time to its first line, which are negative if it began early."""
    jobs = len(instants())
    with marked_bench(peer, store, cache, jobs + WARM_UP) as (bench, marks), bench.at_work(peer.concurrency) as worker:
        _warm_up(bench, worker, marks)
        planned = instants()
        bench.tell("plan", json.dumps(planned), within=within)
        if time.time() > min(planned):
            raise ContenderFailed(
                f"sending {jobs:,} planned jobs took it longer than there was time, {time.time() - min(planned):.1f} s too long"
            )
        worker.wait_for(lambda: all(marks.stamps()[:jobs]), "its worker did not run all jobs", within)
        since_1970 = time.time() - time.monotonic()
        return [start + since_1970 - instant for start, instant in zip(marks.stamps(), planned, strict=False)]


def _warm_up(bench: Bench, worker: Worker, marks: Marks, within: float = TO_BEGIN) -> None:
    """Make the worker run some jobs before the measurement, which uses their numbers again."""
    bench.tell("fill", WARM_UP, within=within)
    worker.wait_for(lambda: marks.ran >= WARM_UP, "its worker began no job", within)
    time.sleep(SETTLED_IN)
    marks.clear()


def _floats(told: Mapping[str, float]) -> Mapping[str, float]:
    return {name: float(value) for name, value in told.items()}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children, because winding down is not measured."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(TO_END)


def _last_line(text: str) -> str:
    """Return the line that describes the error: the last line that names an error, or else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines or ["no output"])[-1][:200]
