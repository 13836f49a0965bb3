"""Real memory exhaustion: a process's own limit leads to an error, a control group's to a kill, and the record says which it was."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.processes import Running, Shell, ended_clearly, until
from tests.cli.supervised import pids

TASKS = """
import os, resource
from taskflow import Backoff, JobContext, job

hoard: list[bytes] = []

def grow(ctx: JobContext, megabytes: int) -> str:
    if ctx.epoch == 1 and ctx.attempt == 1:
        for _ in range(megabytes):
            hoard.append(b"x" * (1 << 20))
    return "grown"

grow_in_a_thread = job(grow, name="grow_in_a_thread")
grow_in_a_child = job(grow, name="grow_in_a_child", runs_in="process")

def _score_of(pid: int) -> int:
    return int(open(f"/proc/{pid}/oom_score_adj").read())

@job(name="score", runs_in="process")
def score() -> None:
    with open("scores", "w") as file:
        print(_score_of(os.getpid()), _score_of(os.getppid()), file=file)

@job(max_attempts=1)
def want_more_than_there_may_be() -> None:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    hoard.append(bytes(1 << 30))

@job
async def add(x: int, y: int) -> int:
    return x + y
"""


@pytest.fixture
def tasks(shell: Shell) -> Shell:
    shell.write("tasks.py", TASKS)
    return shell


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A control group of 256 MiB, where we may create one: version 1 or 2."""
    name = f"taskflow-test-{os.getpid()}"
    for group, limit in (
        (Path("/sys/fs/cgroup/memory", name), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup", name), "memory.max"),
    ):
        try:
            group.mkdir()
            (group / limit).write_text(str(256 << 20))
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        yield group
        until(lambda group=group: not (group / "cgroup.procs").read_text())  # type: ignore[misc]
        group.rmdir()
        return
    pytest.skip("no control group can be made here")


ENTER = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"


def worker_in(group: Path, shell: Shell, *arguments: str) -> Running:
    return shell.start("-c", ENTER, str(group / "cgroup.procs"), "-m", "taskflow", "worker", "tasks", *arguments)


def errors_of(shell: Shell, name: str) -> list[dict[str, Any]]:
    """Return the errors of runs in the record of the only job with that name."""
    [shown] = json.loads(shell.run("-m", "taskflow", "jobs", "--job", name, "--json"))["jobs"]
    return list(shown["errors"])


def test_the_record_shows_that_the_kernel_killed_a_worker_for_memory(tasks: Shell, small_cgroup: Path) -> None:
    tasks.send("grow_in_a_thread.bind(1024)")
    supervised = worker_in(small_cgroup, tasks, "--processes", "2", "--ttl", "3600")
    supervised.wait_for("has ended: out of memory .SIGKILL.; another worker starts now")
    supervised.wait_for("grow_in_a_thread .* succeeded")
    [crash] = errors_of(tasks, "grow_in_a_thread")
    assert "out of memory (SIGKILL)" in crash["message"]
    os.kill(pids(supervised)[-1], signal.SIGKILL)
    supervised.wait_for("has ended: SIGKILL; another")
    supervised.signal(signal.SIGTERM)
    ended_clearly(supervised, [0, 128 + signal.SIGTERM])


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="only Linux lets a process say this")
def test_the_kernel_prefers_a_child_to_its_worker_and_a_worker_to_the_supervisor(tasks: Shell) -> None:
    tasks.send("score.bind()")
    supervised = tasks.taskflow("worker", "tasks", "--processes", "1", "--drain")
    ended_clearly(supervised, [0])
    supervisor = int(Path("/proc/self/oom_score_adj").read_text())
    assert (tasks.folder / "scores").read_text().split() == [str(supervisor + 200), str(supervisor + 100)]


def test_a_child_that_the_kernel_kills_for_memory_is_its_runs_failure_alone(tasks: Shell, small_cgroup: Path) -> None:
    tasks.send("grow_in_a_child.options(retry=Backoff(base=0.01)).bind(1024)", "add.bind(1, 2)")
    worker = worker_in(small_cgroup, tasks, "--drain")
    ended_clearly(worker, [0])
    [failure] = errors_of(tasks, "grow_in_a_child")
    assert failure["type"] == "taskflow.ChildDied"
    assert failure["message"].endswith("has died: out of memory (SIGKILL)")
    assert tasks.counts() == {"succeeded": 2}


def test_a_memory_limit_of_the_process_fails_the_job_and_not_the_worker(tasks: Shell) -> None:
    """RLIMIT_AS, `ulimit -v`: nothing is killed; allocations are refused."""
    tasks.send("want_more_than_there_may_be.bind()", "add.bind(1, 2)")
    worker = tasks.taskflow("worker", "tasks", "--drain", "--concurrency", "1")
    ended_clearly(worker, [1])
    [failure] = errors_of(tasks, "tasks.want_more_than_there_may_be")
    assert failure["type"] == "MemoryError"
    assert tasks.counts() == {"failed": 1, "succeeded": 1}
