"""Workers stopped once, twice or three times, in the first half second and while at work: a sample of what `python -m tests.long` runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.cli.processes import LEDGER, Shell, a_terminal, ended_clearly
from tests.cli.shutdown import BRIEF, NOT_HEARD, STUBBORN, Stage, had_time, nothing_is_lost, stops
from tests.cli.supervised import IN_A_CONTAINER, ON_A_TERMINAL, a_little_later
from tests.support.processes import children_of

pytestmark = pytest.mark.unmeasured


@pytest.fixture
def brief(shell: Shell) -> Stage:
    return Stage(shell, *BRIEF)


@pytest.mark.parametrize("new_store", ["redis", "postgres"], indirect=True)
def test_on_a_server_too(shell: Shell, new_store: Callable[[], str]) -> None:
    """In the first half second, and during work; also a supervisor with two workers. Each way to stop them is used once."""
    stage = Stage(shell, *BRIEF, new_store=new_store)
    flags = ("--concurrency", "4", "--processes", "2")
    at_its_start = stage.stop_all(stops(range(0, 501, 250)), *flags)
    at_work = stage.stop_all(stops(range(0, 181, 90), turn=3), *flags, once="working as")
    for stopped in (*at_its_start, *at_work):
        nothing_is_lost(stopped, 80)
        had_time(stopped)


@pytest.mark.parametrize("processes", [[], ["--processes", "2"]], ids=["one", "two"])
@pytest.mark.sampled(2)
def test_in_the_midst_of_work(brief: Stage, processes: list[str]) -> None:
    for stopped in brief.stop_all(stops(range(0, 181, 30)), "--concurrency", "4", *processes, once="working as"):
        nothing_is_lost(stopped, 80)
        had_time(stopped)


@pytest.mark.parametrize("processes", [[], ["--processes", "2"]], ids=["one", "two"])
@pytest.mark.sampled(2)
def test_with_jobs_that_ignore_their_cancellation(shell: Shell, processes: list[str]) -> None:
    """The first signal ends it too, after the grace period and `stop_timeout`; its jobs are ready for others."""
    stage = Stage(shell, *STUBBORN)
    stopped = stage.stop_all(stops(range(0, 181, 30)), "--grace", "0.1", *processes, once="working as")
    for one in stopped:
        nothing_is_lost(one, 10)
    assert {one.code for one in stopped if one.stop.times < 3} <= {0, 124, *NOT_HEARD}


# --- who sends them, and to whom -----------------------------------------------------------------------------------------


@pytest.fixture
def waiting(shell: Shell) -> Shell:
    """Two jobs that end when the test says so."""
    shell.write("tasks.py", WAITING)
    shell.send("wait.bind()", "wait.bind()")
    return shell


WAITING = """
import asyncio, os
from pathlib import Path
from taskflow import job

@job
async def wait() -> None:
    print(f"begun by {os.getpid()}\\n", end="", flush=True)
    while not Path("release").exists():
        try:
            await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            if not Path("stubborn").exists():
                raise
"""


@pytest.mark.parametrize("processes", [[], ["--processes", "2"]], ids=["one", "two"])
def test_a_signal_to_the_group_is_one(waiting: Shell, processes: list[str]) -> None:
    """`timeout` sends it to the process, and to its group."""
    worker = waiting.start("-m", "taskflow", "worker", "tasks", "--concurrency", "2", *processes, start_new_session=True)
    worker.wait_for("begun by", times=2)
    worker.signal(signal.SIGTERM)
    os.killpg(worker.process.pid, signal.SIGTERM)
    worker.wait_for("winding down: [12] running")
    waiting.write("release", "")
    ended_clearly(worker, [0])
    assert "again" not in worker.said
    assert waiting.counts() == {"succeeded": 2}


def test_a_terminal_that_goes_away_winds_a_lone_worker_down(waiting: Shell) -> None:
    """This holds however many SIGHUPs report it. Runs may finish."""
    ours, theirs = a_terminal()
    worker = waiting.start("-c", ON_A_TERMINAL, "-m", "taskflow", "worker", "tasks", stdin=theirs)
    os.close(theirs)
    worker.wait_for("begun by", times=2)
    os.close(ours)
    worker.wait_for("SIGHUP: winding down")
    a_little_later()
    worker.signal(signal.SIGHUP)
    waiting.write("release", "")
    ended_clearly(worker, [0])
    assert waiting.counts() == {"succeeded": 2}


def test_under_nohup_a_hangup_is_none(waiting: Shell) -> None:
    worker = waiting.start("-c", UNDER_NOHUP, "-m", "taskflow", "worker", "tasks")
    worker.wait_for("begun by", times=2)
    worker.signal(signal.SIGHUP)
    waiting.write("release", "")
    worker.wait_for("succeeded", times=2)
    worker.signal(signal.SIGTERM)
    ended_clearly(worker, [0])
    assert "SIGHUP" not in worker.said


UNDER_NOHUP = (
    "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


@pytest.mark.parametrize("processes", [[], ["--processes", "2"]], ids=["one", "two"])
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.sampled(2)
def test_as_pid1_it_handles_the_same_signals(waiting: Shell, unshare: str, processes: list[str], times: int) -> None:
    """The kernel withholds from process 1 every signal that it has no handler for."""
    worker = waiting.start("-c", IN_A_CONTAINER, unshare, "-m", "taskflow", "worker", "tasks", "--concurrency", "2", *processes)
    worker.wait_for("begun by", times=2)
    [pid1] = children_of(worker.process.pid)
    if times == 3:
        waiting.write("stubborn", "")
    for _ in range(times):
        os.kill(pid1, signal.SIGTERM)
        a_little_later()
    if times == 1:
        worker.wait_for("winding down: [12] running")
        waiting.write("release", "")
    ended_clearly(worker, [(0, 124, 128 + signal.SIGTERM)[times - 1]])
    assert waiting.counts() == [{"succeeded": 2}, {"ready": 2}, {"running": 2}][times - 1]


@pytest.mark.parametrize("processes", [[], ["--processes", "2"]], ids=["one", "two"])
def test_as_pid1_it_hears_a_sigterm_from_its_first_moment_on(shell: Shell, unshare: str, processes: list[str]) -> None:
    """Otherwise `docker stop` waits for its SIGKILL. Any other process is ended by it at once, without a message of ours."""
    shell.start_sooner()
    shell.write("argparse.py", LOADING)
    arguments = ["-m", "taskflow", "worker", "tasks", *processes]
    as_pid1, as_another = shell.start("-c", IN_A_CONTAINER, unshare, *arguments), shell.start(*arguments)
    for worker in (as_pid1, as_another):
        worker.wait_for("loading")
    [pid1] = children_of(as_pid1.process.pid)
    os.kill(pid1, signal.SIGTERM)
    as_another.signal(signal.SIGTERM)
    ended_clearly(as_pid1, [128 + signal.SIGTERM])
    ended_clearly(as_another, [-signal.SIGTERM])
    assert as_pid1.said == as_another.said == "loading\n"


# The current folder's argparse is found first, before the worker knows its modules.
LOADING = """
import time
print("loading\\n", end="", flush=True)
time.sleep(3600)
"""


# --- orphans ---------------------------------------------------------------------------------------------------------------


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
def test_as_pid1_it_reaps_orphans(shell: Shell, unshare: str, processes: list[str]) -> None:
    shell.write("tasks.py", ORPHAN)
    shell.send("leave_an_orphan.bind()")
    worker = shell.start("-c", IN_A_CONTAINER, unshare, "-m", "taskflow", "worker", "tasks", *processes)
    ended_clearly(worker, [0])
    assert shell.ledger() == ["reaped"]
