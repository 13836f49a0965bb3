"""Threads and processes that jobs leave behind in a worker's process, and what these inherit."""

from __future__ import annotations

import signal

import pytest

from tests.cli.processes import Running, Shell, ended_clearly

pytestmark = pytest.mark.unmeasured

TASKS = """
import asyncio, concurrent.futures, multiprocessing, os, signal, threading, time
from taskflow import job

# The pool's thread and the process are waited for as well, each in another way.
pool = concurrent.futures.ThreadPoolExecutor()
forking = multiprocessing.get_context("fork")

def forever() -> None:
    threading.Event().wait()

@job
def leave_a_thread() -> None:
    threading.Thread(target=forever, daemon=False).start()
    print("left\\n", end="", flush=True)

@job
def leave_a_pool() -> None:
    pool.submit(forever)
    print("left\\n", end="", flush=True)

@job
async def leave_a_call() -> None:
    asyncio.get_running_loop().run_in_executor(None, forever)
    print("left\\n", end="", flush=True)

@job
async def leave_a_task() -> None:
    kept.append(asyncio.create_task(go_on()))
    print("left\\n", end="", flush=True)

kept: list[asyncio.Task[None]] = []

async def go_on() -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

@job
def leave_a_process() -> None:
    forking.Process(target=time.sleep, args=(10,)).start()  # longer than what is left behind may take
    print("left\\n", end="", flush=True)

def sleep_on(ready) -> None:
    ready.set()
    time.sleep(90)

def end_by(number: int) -> int | None:
    # The exit code of a process that is forked, and told by a signal to end.
    ready = forking.Event()
    process = forking.Process(target=sleep_on, args=(ready,))
    process.start()
    ready.wait()
    os.kill(process.pid, number)
    process.join(20)
    process.kill()
    return process.exitcode

@job(max_attempts=1)
def fork_in_a_thread(number: int) -> None:
    print(f"ended with {end_by(number)}\\n", end="", flush=True)

@job(max_attempts=1)
async def fork_in_the_loop(number: int) -> None:
    print(f"ended with {end_by(number)}\\n", end="", flush=True)

@job(runs_in="process", max_attempts=1)
def fork_in_a_child(number: int) -> None:
    print(f"ended with {end_by(number)}\\n", end="", flush=True)
"""

KINDS = ("leave_a_thread", "leave_a_pool", "leave_a_call", "leave_a_task", "leave_a_process")


@pytest.mark.parametrize("supervisor", [[], ["--processes", "1"]])
def test_a_worker_that_has_wound_down_ends_with_its_code_whatever_is_left_behind(shell: Shell, supervisor: list[str]) -> None:
    shell.write("tasks.py", TASKS)
    workers: dict[str, Running] = {}
    for name in KINDS:
        shell.environment["TASKFLOW_BROKER"] = f"sqlite:///{name}.db"
        shell.send(f"{name}.bind()")
        workers[name] = shell.taskflow("worker", "tasks", *supervisor)
    for worker in workers.values():
        worker.wait_for("succeeded")
        worker.signal(signal.SIGTERM)
    for worker in workers.values():
        ended_clearly(worker, [0])
        assert "exiting without waiting for them" in worker.said


@pytest.mark.parametrize("where", ["fork_in_a_thread", "fork_in_the_loop", "fork_in_a_child"])
def test_a_process_that_a_job_forked_ends_on_the_usual_signals(shell: Shell, where: str) -> None:
    """It has inherited the worker's handlers, which must not act in it."""
    shell.write("tasks.py", TASKS)
    shell.send(*(f"{where}.bind(signal.{name})" for name in ("SIGTERM", "SIGHUP", "SIGINT")))
    worker = shell.taskflow("worker", "tasks", "--drain", "--concurrency", "1")
    ended_clearly(worker, [0])
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        assert f"ended with {-number}\n" in worker.said
