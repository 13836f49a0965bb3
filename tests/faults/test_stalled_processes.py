"""A worker's process that a job blocks, or that is stopped: its report, and what happens to the job and the process."""

from __future__ import annotations

import json
import re
import signal
import time
from typing import Any

import pytest

from taskflow.model import wording
from tests.cli.processes import LEDGER, Running, Shell, ended_clearly, on_each_broker

pytestmark = pytest.mark.unmeasured

TASKS = (
    LEDGER
    + """
import asyncio, collections, ctypes, functools, logging, mmap, operator, os, time
from pathlib import Path
from taskflow import JobContext, job

def wait_for(name: str) -> None:
    while not Path(name).exists():
        time.sleep(0.005)

@job
async def block(ctx: JobContext) -> None:
    print("begun\\n", end="", flush=True)
    wait_for("release")
    write(f"epoch {ctx.epoch}")

@job
async def block_at_first(ctx: JobContext) -> None:
    if ctx.epoch == 1:
        print("begun\\n", end="", flush=True)
        time.sleep(3600)
    write(f"epoch {ctx.epoch}")

@job
async def block_the_log() -> None:
    for handler in logging.getLogger().handlers:
        handler.acquire()
    time.sleep(3600)

@job
async def compute_in_c(ctx: JobContext) -> None:
    # Until somebody makes the file's only byte a 1: no line of Python is run before.
    if ctx.epoch == 1:
        Path("byte").write_bytes(bytes(1))
        with open("byte", "r+b") as file, mmap.mmap(file.fileno(), 1) as memory:
            print("begun\\n", end="", flush=True)
            collections.deque(iter(functools.partial(operator.getitem, memory, 0), 1), maxlen=0)
    write(f"epoch {ctx.epoch}")

@job
async def wait_in_c(ctx: JobContext) -> None:
    # It keeps the interpreter, as above, and takes no processor.
    if ctx.epoch == 1:
        print("begun\\n", end="", flush=True)
        ctypes.PyDLL(None).pause()
    write(f"epoch {ctx.epoch}")

@job
def wait_in_a_thread(ctx: JobContext) -> str:
    if ctx.epoch == 1:
        print("begun\\n", end="", flush=True)
        wait_for("release")
    write(f"epoch {ctx.epoch}")
    return f"epoch {ctx.epoch}"
"""
)


@pytest.fixture
def tasks(shell: Shell) -> Shell:
    shell.write("tasks.py", TASKS)
    return shell


def the_job(tasks: Shell) -> dict[str, Any]:
    [shown] = json.loads(tasks.run("-m", "taskflow", "jobs", "--json"))["jobs"]
    return dict(shown)


def let_end(*workers: Running) -> None:
    for worker in workers:
        worker.signal(signal.SIGTERM)
    for worker in workers:
        ended_clearly(worker, [0])


def test_a_job_that_blocks_the_loop_beyond_the_ttl_runs_once_and_is_named(tasks: Shell) -> None:
    tasks.send("block.bind()")
    first = tasks.worker("--ttl", "1")
    first.wait_for("begun")
    second = tasks.worker("--ttl", "1")
    first.wait_for(r"WARNING tasks\.block [0-9a-f-]{36} .* blocks the event loop for 1\.")
    first.wait_for(r"in wait_for")
    time.sleep(3.0)  # several times the ttl of a session without heartbeats
    tasks.write("release", "")
    first.wait_for("the event loop is responding again")
    first.wait_for("succeeded")
    let_end(first, second)
    assert tasks.ledger() == ["epoch 1"]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_in_json_the_stack_is_a_field_of_the_line(tasks: Shell, loop: str) -> None:
    """This holds on each installed loop."""
    if loop == "asyncio":
        tasks.write("uvloop.py", "raise ImportError('not in this test')")  # the current folder's is found first
    else:
        pytest.importorskip("uvloop")
    tasks.send("block.bind()")
    worker = tasks.worker("--log-format", "json")
    worker.wait_for("blocks the event loop")
    tasks.write("release", "")
    worker.wait_for("succeeded")
    let_end(worker)
    [line] = [json.loads(line) for line in worker.said.splitlines() if "blocks the event loop" in line]
    assert (line["job"], line["attempt"], line["level"]) == ("tasks.block", 1, "warning")
    assert "in wait_for" in line["stack"]


def test_a_loop_that_stands_still_for_good_ends_the_process_and_another_runs_the_job(tasks: Shell) -> None:
    tasks.send("block_at_first.bind()")
    first = tasks.worker("--ttl", "1", "--stall-limit", "2")
    first.wait_for("begun")
    second = tasks.worker("--ttl", "1")
    ended_in(first, 5)
    assert re.search(r"CRITICAL tasks\.block_at_first .* has blocked the event loop for 2 s", first.said)
    assert "taskflow-heartbeat (" in first.said
    second.wait_for("succeeded")
    let_end(second)
    assert tasks.ledger() == ["epoch 2"]


def test_a_loop_that_stands_still_in_the_log_itself_ends_the_process_too(tasks: Shell) -> None:
    """Every log call waits for the log's lock; the stacks are written without it."""
    tasks.send("block_the_log.bind()")
    worker = tasks.worker("--stall-limit", "2")
    ended_in(worker, 5)
    assert "(most recent call first):" in worker.said
    assert "in block_the_log" in worker.said


def ended_in(worker: Running, code: int) -> None:
    """Assert the exit code. The output has stacks, which include our frames."""
    assert worker.end() == code, worker.said


@pytest.mark.parametrize("new_store", ["redis"], indirect=True)
def test_c_code_that_keeps_the_interpreter_beyond_the_ttl_is_fenced_counted_as_a_crash_and_named(tasks: Shell) -> None:
    """It goes on until another worker has run the job. A third sends heartbeats all the while: if none did, the store would count as
    unavailable, and no job as crashed. On a server: a worker that is blocked in the midst of a write to a file keeps the file locked, and
    all wait."""
    tasks.send("compute_in_c.bind()")
    third = tasks.worker("--ttl", "5", "--queues", "another")
    first = tasks.worker("--ttl", "5")
    first.wait_for("begun")
    second = tasks.worker("--ttl", "5")
    second.wait_for("tasks.compute_in_c .* succeeded")
    with (tasks.folder / "byte").open("r+b") as file:  # not truncated first: the other process has mapped it
        file.write(b"\1")
    first.wait_for(r"tasks\.compute_in_c .* kept the interpreter lock .GIL.* after the ttl of 5 s others may take .*runs_in=.process.")
    first.wait_for("tasks.compute_in_c .* that was ignored")
    first.wait_for("working as", times=2)
    shown = the_job(tasks)
    let_end(first, second, third)
    assert (shown["status"], shown["epoch"], shown["failures"]) == ("succeeded", 2, 0)
    [crash] = shown["errors"]
    assert crash["type"] == wording.CRASHED
    assert tasks.ledger() == ["epoch 2", "epoch 1"]


@pytest.mark.parametrize("new_store", ["redis"], indirect=True)
def test_a_supervisor_ends_a_worker_whose_interpreter_c_code_keeps_for_good(tasks: Shell) -> None:
    """Nothing in the worker's own process can. The job's record says how that run ended, and other jobs have run meanwhile."""
    tasks.send("wait_in_c.bind()")
    supervisor = tasks.worker("--processes", "1", "--ttl", "2", "--stall-limit", "3")
    supervisor.wait_for("begun")
    supervisor.wait_for("has been silent for 10 s")
    supervisor.wait_for("tasks.wait_in_c .* succeeded")
    assert "in wait_in_c" in supervisor.said
    [crash] = the_job(tasks)["errors"]
    assert crash["type"] == wording.CRASHED
    assert "SIGABRT" in crash["message"]
    supervisor.signal(signal.SIGTERM)
    ended_in(supervisor, 0)


@on_each_broker
def test_a_stopped_worker_loses_its_job_and_nothing_that_it_settles_counts(tasks: Shell) -> None:
    """SIGSTOP for longer than its ttl. When it goes on, its run has just ended, under a lease that is another's by now: the log reports
    that, the worker begins another session, and works."""
    tasks.send("wait_in_a_thread.bind()")
    first = tasks.worker("--ttl", "1")
    first.wait_for("begun")
    second = tasks.worker("--ttl", "1")
    tasks.suspend(first)
    second.wait_for("succeeded")
    time.sleep(1.5)  # long enough to be reported
    tasks.write("release", "")
    first.signal(signal.SIGCONT)
    first.wait_for("that was ignored")
    first.wait_for("working as", times=2)
    first.wait_for("the process was suspended for")
    let_end(second)  # otherwise it would take the next one too
    tasks.send("wait_in_a_thread.bind()")
    first.wait_for("succeeded after", times=2)
    let_end(first)
    assert tasks.counts() == {"succeeded": 2}
    assert tasks.ledger() == ["epoch 2", "epoch 1", "epoch 1"]
