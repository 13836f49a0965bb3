"""Jobs that disturb the process and the event loop that they share with their worker: it goes on, and so do their neighbours."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from tests.cli.processes import Running, Shell, ended_clearly, until

pytestmark = pytest.mark.unmeasured

TASKS = """
import asyncio, logging, os, sys
from pathlib import Path
from taskflow import JobContext, job

@job(max_attempts=1)
async def neighbour() -> None:
    print("begun", flush=True)
    while not Path("release").exists():
        await asyncio.sleep(0.005)

@job(max_attempts=1)
async def exit_in_a_task(kind: str) -> None:
    async def end() -> None:
        raise {"exit": SystemExit(3), "interrupt": KeyboardInterrupt()}[kind]
    async with asyncio.TaskGroup() as group:
        group.create_task(end())

@job(max_attempts=1)
async def exit_in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.sleep(0.01)

@job(max_attempts=1)
async def stop_the_loop() -> None:
    asyncio.get_running_loop().stop()

@job(max_attempts=1)
async def cancel_everything() -> None:
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            task.cancel()

@job(max_attempts=1)
async def cancel_everything_at_the_end() -> None:
    print("begun", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task.cancel()
            raise

class Failing(logging.Handler):
    def handle(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("the application's own handler")

@job
async def break_the_log() -> None:
    logging.getLogger().addHandler(Failing())

@job(max_attempts=1)
async def fork() -> None:
    pid = os.fork()
    if pid == 0:
        sys.exit()
    Path("status").write_text(str(os.waitpid(pid, 0)[1]))

@job(max_attempts=1)
async def cancel_all() -> None:
    for _ in range(100):
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

@job
async def add() -> None: ...
"""


@pytest.fixture(params=["uvloop", "asyncio"])
def tasks(request: pytest.FixtureRequest, shell: Shell) -> Shell:
    """On uvloop, where it is installed, and without it: the current folder's `uvloop` is found first."""
    shell.write("tasks.py", TASKS)
    if request.param == "asyncio":
        shell.write("uvloop.py", "raise ImportError('not in this test')")
    else:
        pytest.importorskip("uvloop")
    return shell


def goes_on(shell: Shell, worker: Running) -> None:
    shell.send("add.bind()")
    worker.wait_for("tasks.add .*succeeded")
    worker.signal(signal.SIGTERM)
    ended_clearly(worker, [0])


def test_an_exit_in_a_task_of_a_job_fails_only_that_job(tasks: Shell) -> None:
    tasks.send("neighbour.bind()")
    worker = tasks.worker()
    worker.wait_for("begun")
    tasks.send("exit_in_a_task.bind('exit')", "exit_in_a_task.bind('interrupt')", "exit_in_a_callback.bind()", "stop_the_loop.bind()")
    worker.wait_for("event loop; restarting it")
    worker.wait_for("tasks.exit_in_a_task .*failed for good", times=2)
    tasks.write("release", "")
    worker.wait_for("tasks.neighbour .*succeeded")
    goes_on(tasks, worker)
    jobs = json.loads(tasks.run("-m", "taskflow", "jobs", "--json"))["jobs"]
    assert {job["job"]: job["status"] for job in jobs if "task" in job["job"].split(".")[1] or "neighbour" in job["job"]} == {
        "tasks.exit_in_a_task": "failed",
        "tasks.neighbour": "succeeded",
    }


def test_a_worker_survives_a_job_that_cancels_every_task_of_its_loop(tasks: Shell) -> None:
    tasks.send("cancel_everything.bind()")
    worker = tasks.worker()
    worker.wait_for("the task continues")
    goes_on(tasks, worker)


def test_a_job_that_cancels_every_task_while_the_worker_winds_down_keeps_it_from_nothing(tasks: Shell) -> None:
    """Running jobs are handed back at once, and the worker leaves."""
    tasks.send("cancel_everything_at_the_end.bind()", "neighbour.bind()")
    worker = tasks.worker("--grace", "0.5")
    worker.wait_for("begun", times=2)
    worker.signal(signal.SIGTERM)
    ended_clearly(worker, [124])
    assert tasks.counts() == {"ready": 2}
    assert json.loads(tasks.run("-m", "taskflow", "status", "--json"))["workers"] == []


def test_a_worker_whose_log_fails_works_on_and_heeds_signals(tasks: Shell) -> None:
    """One of the application's handlers or filters raises for every line."""
    tasks.send("break_the_log.bind()", "neighbour.bind()")
    worker = tasks.worker()
    worker.wait_for("the application's own handler")
    tasks.write("release", "")
    until(lambda: tasks.counts() == {"succeeded": 2}, worker)
    worker.signal(signal.SIGTERM)
    assert worker.end() == 0


def drained(shell: Shell, call: str) -> str:
    shell.write("tasks.py", TASKS)
    shell.send(call)
    command = [sys.executable, "-m", "taskflow", "worker", "tasks", "--drain"]
    ended = subprocess.run(command, cwd=shell.folder, env=shell.environment, capture_output=True, check=False, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def test_a_process_that_a_job_forked_does_not_become_a_second_worker(shell: Shell) -> None:
    """It outlived the worker, used up a processor and filled the log."""
    assert drained(shell, "fork.bind()").count("a job has returned in a process that it forked; ending the process") == 1
    assert (shell.folder / "status").read_text() == str(1 << 8)


def test_a_job_that_cancels_every_task_in_a_loop_is_said_once_for_each_task(shell: Shell) -> None:
    """It wrote 38 MB of log in six seconds."""
    assert 1 <= drained(shell, "cancel_all.bind()").count("a job tried to cancel a task of the worker") <= 5
