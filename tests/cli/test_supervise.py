"""`taskflow worker` under a supervisor, with real processes: dead workers are replaced, no job is dropped, nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter

import pytest

from tests.cli.processes import JOBS, Shell, ended_clearly, on_each_broker, until
from tests.cli.supervised import none_is_left, pids, workers

TASKS = (
    JOBS
    + """
print("imported\\n", end="", flush=True)

@job
async def note(n: int, seconds: float = 0.05) -> None:
    await asyncio.sleep(seconds)
    write(f"{n} {os.getpid()}")

hoard: list[bytes] = []

@job
def grow(ctx: JobContext, megabytes: int) -> None:
    if ctx.epoch == 1:
        for _ in range(megabytes):
            hoard.append(b"x" * (1 << 20))
    write("grown")
"""
)


@pytest.fixture
def tasks(shell: Shell) -> Shell:
    shell.write("tasks.py", TASKS)
    return shell


# --- crashes -------------------------------------------------------------------------------------------------------------


@on_each_broker
def test_a_killed_worker_is_replaced_and_its_jobs_run_again(tasks: Shell) -> None:
    tasks.send("wait.bind()", "wait.bind()")
    supervised = workers(tasks, 2, "--concurrency", "1", "--ttl", "3600")
    supervised.wait_for("begun by", times=2)
    victim = pids(supervised)[0]
    os.kill(victim, signal.SIGKILL)
    supervised.wait_for(f"worker {victim} has ended: SIGKILL; another worker starts now")
    supervised.wait_for("jobs of session [0-9a-f]{32} run again; its worker died: SIGKILL")
    supervised.wait_for("begun by", times=3)
    tasks.write("release", "")
    until(lambda: tasks.ledger() == ["ended", "ended"], supervised)
    supervised.signal(signal.SIGTERM)
    ended_clearly(supervised, [0])
    assert tasks.counts() == {"succeeded": 2}
    assert supervised.said.count("imported") == 3, "each has imported the application itself, once, and the supervisor has not"
    none_is_left(supervised)


# --- what cannot start ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("import nowhere_to_be_found", [], "taskflow: tasks cannot be imported: ModuleNotFoundError"),
        ("def f(:", [], "taskflow: tasks cannot be imported: SyntaxError: invalid syntax"),
        ("", [], "taskflow: no jobs in tasks"),
        (TASKS, ["--broker", "mysql://there"], "taskflow: .*mysql"),
        (TASKS, ["--queues", "a=b"], "taskflow: --queues: queue 'a' has the weight 'b'"),
    ],
)
def test_a_usage_error_ends_it_and_is_said_once(shell: Shell, module: str, arguments: list[str], message: str) -> None:
    shell.write("tasks.py", module)
    supervised = shell.taskflow("worker", "tasks", "--processes", "3", *arguments)
    ended_clearly(supervised, [2])
    assert len(re.findall(f"^{message}", supervised.said, re.MULTILINE)) == 1, supervised.said


def test_a_broker_that_does_not_answer_at_the_start_is_reported_once(tasks: Shell) -> None:
    """Only the first worker waits for it."""
    supervised = tasks.taskflow("worker", "tasks", "--processes", "2", "--broker", "redis://127.0.0.1:1", "--start-timeout", "4")
    ended_clearly(supervised, [3])
    assert supervised.said.count("the broker does not answer yet") == 1, supervised.said
    assert supervised.said.count("taskflow: ") == 1, supervised.said


# --- the supervisor's own end --------------------------------------------------------------------------------------------


def test_nothing_outlives_a_supervisor_that_is_killed(tasks: Shell) -> None:
    tasks.send("wait.bind()", "block.bind()")
    supervised = workers(tasks, 3, "--concurrency", "1")
    supervised.wait_for("begun", times=2)
    supervised.signal(signal.SIGKILL)
    assert supervised.end() == -signal.SIGKILL
    none_is_left(supervised)


# --- rolling restart -----------------------------------------------------------------------------------------------------

LOAD = """
import time
from tasks import note
from taskflow import enqueue_sync

began = time.monotonic()
for tenth in range(TENTHS):
    enqueue_sync([note.bind(10 * tenth + n) for n in range(10)])
    time.sleep(max(0.0, began + 0.1 * tenth - time.monotonic()))
"""


@on_each_broker
def test_a_rolling_restart_under_load_loses_nothing_and_keeps_its_strength(tasks: Shell) -> None:
    """Every worker is replaced twice at about 100 jobs a second of 50 ms each."""
    supervised = workers(tasks, 2, "--concurrency", "10")
    load = tasks.start("-c", LOAD.replace("TENTHS", "60"))
    load.wait_for("imported")
    for rounds in (1, 2):
        supervised.signal(signal.SIGHUP)
        supervised.wait_for("all workers have been replaced", times=rounds)
    assert load.end() == 0
    until(lambda: len(tasks.ledger()) >= 600, supervised)
    at_work = fewest_at_work(supervised.said)  # so far: a worker may report that it winds down before the supervisor's line
    supervised.signal(signal.SIGTERM)
    ended_clearly(supervised, [0])
    assert Counter(line.split()[0] for line in tasks.ledger()) == Counter(map(str, range(600)))
    assert tasks.counts() == {"succeeded": 600}
    assert len(pids(supervised)) == 6
    assert at_work == 2
    none_is_left(supervised)


def fewest_at_work(said: str) -> int:
    """Return the fewest workers at work, from the moment on when two have worked."""
    working, counts = 0, []
    for line in said.splitlines():
        working += ("working as" in line) - (" winding down: " in line and "running" in line)
        counts.append(working)
    return min(counts[counts.index(2) :])


# --- recycling -----------------------------------------------------------------------------------------------------------


@on_each_broker
def test_a_job_longer_than_the_grace_period_ends_in_the_worker_that_has_run_as_many_as_it_may(tasks: Shell) -> None:
    """It ends beside the worker's successors, of which several come and go meanwhile; it is begun once."""
    tasks.send("wait.bind()", "*[note.bind(n) for n in range(60)]")
    supervised = tasks.taskflow("worker", "tasks", "--max-jobs", "10", "--concurrency", "2", "--grace", "0.1")
    until(lambda: len(tasks.ledger()) >= 60, supervised)
    supervised.wait_for("has wound down", times=3)
    tasks.write("release", "")
    until(lambda: "ended" in tasks.ledger(), supervised)
    supervised.wait_for("has wound down", times=4)
    supervised.signal(signal.SIGTERM)
    ended_clearly(supervised, [0, 128 + signal.SIGTERM])
    assert supervised.said.count("begun by") == 1
    assert tasks.counts() == {"succeeded": 61}


def test_a_worker_that_uses_too_much_memory_is_replaced_and_finishes_its_runs(tasks: Shell) -> None:
    """It also finishes runs that take longer than the grace period."""
    tasks.send("wait.bind()")
    supervised = tasks.taskflow("worker", "tasks", "--max-memory", "300M", "--grace", "0.1")
    supervised.wait_for("begun by")
    tasks.send("grow.bind(400)")
    supervised.wait_for("MiB of memory, more than 300 MiB .--max-memory.: another worker takes over")
    supervised.wait_for("working as", times=2)
    tasks.send("note.bind(1)")
    until(lambda: len(tasks.ledger()) == 2, supervised)
    tasks.write("release", "")
    supervised.wait_for("has wound down")
    supervised.signal(signal.SIGTERM)
    ended_clearly(supervised, [0])
    assert Counter(line.split()[0] for line in tasks.ledger()) == {"grown": 1, "1": 1, "ended": 1}
    assert supervised.said.count("begun by") == 1
    assert tasks.counts() == {"succeeded": 3}


# --- drain ---------------------------------------------------------------------------------------------------------------


def test_a_drain_by_several_workers_reports_the_remaining_jobs_once(tasks: Shell) -> None:
    tasks.send("*[note.bind(n) for n in range(50)]", "note.options(after=3600).bind(50)")
    supervised = tasks.taskflow("worker", "tasks", "--processes", "2", "--concurrency", "5", "--drain", "--max-jobs", "15")
    ended_clearly(supervised, [0])
    assert tasks.counts() == {"succeeded": 50, "scheduled": 1}
    assert supervised.said.count("left in default: 1 scheduled") == 1


# --- reload --------------------------------------------------------------------------------------------------------------

VERSION = """
import os
from taskflow import job

@job
async def tell() -> None:
    file = os.open("ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"{}\\n")
    os.close(file)
"""


def test_a_changed_file_is_loaded_and_a_broken_one_is_waited_for(shell: Shell) -> None:
    """The versions differ in length: to Python, a file of the same size and the same second is the one that it has compiled."""
    pytest.importorskip("watchfiles")
    shell.write("tasks.py", VERSION.format("first"))
    supervised = shell.taskflow("worker", "tasks", "--reload", "--processes", "2")
    supervised.wait_for("working as", times=2)
    shell.send("tell.bind()")
    until(lambda: shell.ledger() == ["first"], supervised)
    shell.write("tasks.py", "def f(:")
    supervised.wait_for("SyntaxError: invalid syntax")
    supervised.wait_for("waiting for a file to change")
    shell.write("tasks.py", VERSION.format("second"))
    supervised.wait_for("working as", times=4)
    shell.send("tell.bind()")
    until(lambda: shell.ledger() == ["first", "second"], supervised)
    supervised.signal(signal.SIGINT)
    ended_clearly(supervised, [0])
    assert supervised.said.count("cannot be imported") == 1
    none_is_left(supervised)


def test_without_watchfiles_it_says_how_to_install_it(tasks: Shell) -> None:
    """The current folder's `watchfiles` is found first."""
    tasks.write("watchfiles.py", "raise ImportError('not in this test')")
    supervised = tasks.taskflow("worker", "tasks", "--reload")
    ended_clearly(supervised, [2])
    assert supervised.said == "taskflow: --reload needs watchfiles: pip install watchfiles\n"
