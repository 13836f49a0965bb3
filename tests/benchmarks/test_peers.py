"""A peer's program is told what to do, its answer is taken, and it is ended whatever becomes of it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from benchmarks.marks import VARIABLE, Marks, environment_of, marks_of
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.rivals import MOST_PROCESSES, Rivals
from benchmarks.peers.runs import Bench
from benchmarks.stores import REDIS, Server, postgres

ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, signal, subprocess, sys, time
from contextlib import asynccontextmanager
from benchmarks.marks import mark
from benchmarks.peers.programs.contract import Sending, run_async

class Peer(Sending):
    async def send(self, number):
        mark(number)

    async def ask(self, number):
        mark(number)
        await asyncio.sleep(0)

@asynccontextmanager
async def sending():
    yield Peer()

def work(concurrency):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    if concurrency == 1:
        raise SystemExit("RuntimeError: it has no store")
    time.sleep(600)

run_async(sending, work)
"""


@pytest.fixture
def a_bench(tmp_path: Path) -> Callable[[Marks], Bench]:
    """Of a peer whose worker ends by SIGKILL alone and has a child; it needs no store."""
    program = tmp_path / "peer.py"
    program.write_text(PROGRAM)

    def bench(marks: Marks) -> Bench:
        environment = {**environment_of(marks), "PYTHONPATH": str(ROOT)}
        return Bench(PEERS[0], cast("Server", None), [sys.executable, str(program)], environment)

    return bench


@pytest.mark.parametrize(("verb", "more"), [("fill", ()), ("callers", (3,)), ("one-by-one", (0.0,)), ("ask", (3,))])
def test_each_verb_sends_each_job_once(a_bench: Callable[[Marks], Bench], verb: str, more: tuple[float, ...]) -> None:
    with marks_of(1_008) as marks:
        told = a_bench(marks).tell(verb, 1_008, *more, within=60.0)

        marks.check()
    if verb in ("fill", "callers"):
        assert told.keys() == {"jobs/s", "CPU µs/job"}
    elif verb == "one-by-one":
        assert told == sorted(told)
        assert len(told) == 1_008
    else:
        assert len(told["each"]) == 1_008


def test_a_worker_is_ended_with_its_children_even_if_it_hears_no_signal(a_bench: Callable[[Marks], Bench]) -> None:
    with marks_of(8) as marks, a_bench(marks).at_work(100) as worker:
        worker.wait_for(lambda: worker.said().endswith("\n"), "it started no child", 60.0)
        child = os.pidfd_open(int(worker.said()))

    assert worker.process.returncode == -9
    ended, _, _ = select.select([child], [], [], 60.0)
    os.close(child)
    assert ended


def test_peers_of_each_store_stand_beside_a_lone_job_among_idle_workers() -> None:
    """By the variant that waits for results where there is one, and never by two variants of one program."""
    on_redis, on_postgres = ({peer.name for peer in Rivals().herds(store, MOST_PROCESSES)} for store in (REDIS, postgres()))

    assert on_redis >= {"dramatiq with results", "taskiq with results", "saq", "bullmq"}
    assert on_postgres >= {"pgqueuer", "oban"}
    assert on_redis.isdisjoint({"dramatiq", "taskiq", "huey", "celery"})
    assert not Rivals().herds(REDIS, MOST_PROCESSES + 1)


def test_a_program_asks_for_nothing_but_its_environment() -> None:
    """It must run where taskflow's own dependencies are not installed."""
    command = [sys.executable, "-S", "-c", "import benchmarks.peers.programs.contract, benchmarks.marks"]
    subprocess.run(command, cwd=ROOT, env={VARIABLE: "", "PATH": os.environ["PATH"]}, check=True)
