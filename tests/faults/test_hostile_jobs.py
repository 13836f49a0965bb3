"""Jobs that do to the worker's process what nobody should: it goes on, and says so once."""

from __future__ import annotations

import subprocess
import sys

from tests.cli.processes import Shell

TASKS = """
import asyncio, os, sys
from pathlib import Path
from taskflow import job

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
"""


def drained(shell: Shell, call: str) -> str:
    shell.write("tasks.py", TASKS)
    shell.send(call)
    command = [sys.executable, "-m", "taskflow", "worker", "tasks", "--drain"]
    ended = subprocess.run(command, cwd=shell.folder, env=shell.environment, capture_output=True, check=False, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def test_a_process_that_a_job_has_forked_does_not_go_on_as_a_second_worker(shell: Shell) -> None:
    """It outlived the worker, and filled a processor and the log."""
    assert drained(shell, "fork.bind()").count("a job has returned in a process that it had forked, which ends now") == 1
    assert (shell.folder / "status").read_text() == str(1 << 8)


def test_a_job_that_cancels_every_task_in_a_loop_is_said_once_for_each_task(shell: Shell) -> None:
    """It wrote 38 MB in six seconds."""
    assert 1 <= drained(shell, "cancel_all.bind()").count("a job tried to cancel a task of the worker") <= 5
