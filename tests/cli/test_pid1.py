"""`taskflow worker` as process 1 of a container."""

from __future__ import annotations

import signal

import pytest

from tests.cli.processes import LEDGER, Shell, ended_clearly
from tests.cli.supervised import IN_A_CONTAINER

ORPHAN = (
    LEDGER
    + """
import os, signal, subprocess, time
from taskflow import job

@job
def leave_an_orphan() -> None:
    said = subprocess.run(["sh", "-c", "sleep 0.1 >/dev/null & echo $!"], capture_output=True, text=True, check=True)
    orphan = int(said.stdout)
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        try:
            os.kill(orphan, 0)  # a zombie takes signals too
        except ProcessLookupError:
            write("reaped")
            break
        time.sleep(0.01)
    os.kill(os.getppid(), signal.SIGTERM)
"""
)


@pytest.mark.parametrize("processes", [[], ["--processes", "1"]], ids=["plain", "supervised"])
def test_as_pid1_it_reaps_what_others_leave_behind(shell: Shell, unshare: str, processes: list[str]) -> None:
    shell.write("tasks.py", ORPHAN)
    shell.send("leave_an_orphan.bind()")
    worker = shell.start("-c", IN_A_CONTAINER, unshare, "-m", "taskflow", "worker", "tasks", *processes)
    ended_clearly(worker, [0])
    assert shell.ledger() == ["reaped"]


def test_as_pid1_a_plain_worker_has_its_own_children_for_itself(shell: Shell, unshare: str) -> None:
    """Their exit codes are theirs who have started them: a job, in a thread and in the loop, multiprocessing, a job's child process."""
    shell.write("tasks.py", CHILDREN)
    shell.send("*[each.bind(n) for n in range(20) for each in (starts, starts_in_the_loop)]", "forks.bind()", "computes.bind()")
    worker = shell.start("-c", IN_A_CONTAINER, unshare, "-m", "taskflow", "worker", "tasks", "--drain")
    ended_clearly(worker, [0])
    assert shell.counts() == {"succeeded": 42}


CHILDREN = """
import asyncio, multiprocessing, os, subprocess, sys
from taskflow import job

def ends_with(n: int) -> list[str]:
    return ["sh", "-c", f"(sleep 0.01 &) ; exit {n}"]

@job(max_attempts=1)
def starts(n: int) -> None:
    assert subprocess.run(ends_with(n)).returncode == n

@job(max_attempts=1)
async def starts_in_the_loop(n: int) -> None:
    process = await asyncio.create_subprocess_exec(*ends_with(n))
    assert await process.wait() == n

@job(max_attempts=1)
def forks() -> None:
    process = multiprocessing.get_context("spawn").Process(target=sys.exit, args=(7,))
    process.start()
    process.join()
    assert process.exitcode == 7

@job(runs_in="process", max_attempts=1)
def computes() -> None:
    assert os.getppid() != 1
"""


ENDS = """
import os, signal
from taskflow import job

{at_import}

@job(max_attempts=1)
def end() -> None:
    {end}
"""


@pytest.mark.parametrize(
    ("end", "at_import", "code"),
    [
        ("os._exit(7)", "", 7),
        ("os.kill(os.getpid(), signal.SIGKILL)", "", 128 + signal.SIGKILL),
        ("raise ValueError", "", 1),
        ("raise ValueError", "raise ImportError", 2),
        ("os.kill(1, signal.SIGUSR1)", "signal.signal(signal.SIGUSR1, lambda *_: os._exit(9))", 9),
    ],
)
def test_as_pid1_a_plain_worker_ends_as_anywhere_else(shell: Shell, unshare: str, end: str, at_import: str, code: int) -> None:
    """It is not replaced, and nothing more is said; and what it has a handler for it hears."""
    shell.write("tasks.py", ENDS.format(end=end, at_import=""))
    shell.send("end.bind()")
    shell.write("tasks.py", ENDS.format(end=end, at_import=at_import))
    worker = shell.start("-c", IN_A_CONTAINER, unshare, "-m", "taskflow", "worker", "tasks", "--drain")
    assert worker.end() == code, worker.said
    assert "started" not in worker.said
    assert worker.said.count("queues: every queue") == (code != 2)
