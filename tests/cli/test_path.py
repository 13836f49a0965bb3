"""The shortest path, for real: a process that sends, a worker in another, a SQLite file between them."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.cli.processes import Shell, counts_of, ended_clearly
from tests.support.processes import children_of

TASKS = """
from taskflow import job

@job
async def add(x: int, y: int = 1) -> int:
    return x + y

@job(max_attempts=2)
def fail() -> None:
    raise ValueError("as asked")
"""

SEND = """
import asyncio
from app.tasks import add, fail
from taskflow import JobFailed, enqueue

async def main() -> None:
    handles = await enqueue(add.bind(n, n) for n in range(200))
    handle = await fail.options(max_attempts=1).delay()
    print(sum([await handle.result(timeout=30) for handle in handles]))
    try:
        await handle.result(timeout=30)
    except JobFailed as error:
        print(error.type, error.message)

asyncio.run(main())
"""


@pytest.fixture
def application(shell: Shell) -> Shell:
    shell.write("app/tasks.py", TASKS)
    shell.write("send.py", SEND)
    shell.environment |= {"PYTHONPATH": "", "TMPDIR": str(shell.folder)}
    return shell


def test_a_worker_in_another_process_runs_the_sent_jobs(application: Shell) -> None:
    worker = application.taskflow("worker", "app.tasks")
    assert application.run("send.py").splitlines() == [str(sum(2 * n for n in range(200))), "ValueError as asked"]
    worker.signal(signal.SIGTERM)
    ended_clearly(worker, [0])


# --- the demo --------------------------------------------------------------------------------------------------------


def test_the_demo_counts_the_files_correctly(application: Shell) -> None:
    """Its figures equal those of an independent count of the same files, and so do those of its remaining queue."""
    said = application.run("-m", "taskflow", "demo", "--folder", "demo", "--limit", "60")
    contents = [file.read_bytes() for file in the_first_files(60)]
    assert figure(said, "files") == 60
    assert figure(said, "lines") == sum(content.count(b"\n") for content in contents)
    assert figure(said, "definitions") > 100
    assert figure(said, "distinct") == len({hashlib.sha256(content).digest() for content in contents})
    assert figure(said, "retries") == 1
    assert figure(said, "failed") == 0
    assert re.search(r"^imported +\w+ \(\d+\), ", said, re.MULTILINE)
    assert "60 of 60 done" in said.splitlines()
    [file] = (application.folder / "demo").glob("demo-*.db")
    assert counts_of(f"sqlite:///{file}") == {"succeeded": 60}
    assert [file.name for file in (application.folder / "demo").iterdir() if file.stat().st_mode & 0o077] == []  # only for their owner


def test_the_command_that_the_demo_suggests_works(application: Shell) -> None:
    """The command is pasted into the shell from which the demo was called; also when no folder is named, and when the folder's name is
    odd."""
    script = shlex.quote(str(Path(sys.executable).with_name("taskflow")))
    python = f"{shlex.quote(sys.executable)} -m taskflow"
    for command in (f"{script} demo --limit 2", f"{python} demo --limit 2 --folder 'a b%20?#&c'"):
        status, jobs, one = (pasted(application, line) for line in pasted(application, command).splitlines()[-3:])
        assert re.search(r"^demo +0 +0 +0 +0 +2 +0 +0$", status, re.MULTILINE)
        assert jobs.count("succeeded") == 2
        assert "attempt 1: OSError: " in one
        assert "on purpose" in one


def test_the_demo_is_not_confused_by_modules_in_the_current_folder(application: Shell) -> None:
    for name in ("taskflow", "queue", "hashlib", "ast"):
        application.write(f"{name}.py", "raise AssertionError('not this one')\n")
    pasted(application, f"{shlex.quote(str(Path(sys.executable).with_name('taskflow')))} demo --limit 2")


@pytest.mark.parametrize("moment", ["at its start", "half way"])
def test_a_demo_whose_worker_dies_ends(application: Shell, moment: str) -> None:
    demonstrating = application.taskflow("demo", "--folder", "demo")
    demonstrating.wait_for("^0 of " if moment == "at its start" else "^[1-9][0-9,]* of ")
    for child in children_of(demonstrating.process.pid):
        os.kill(child, signal.SIGKILL)
    assert demonstrating.end() == 1
    assert "taskflow: the worker ended too early (SIGKILL): " in demonstrating.said


@pytest.mark.parametrize("folder", ["file/inside", "/proc"])
def test_a_folder_that_cannot_be_made_or_written_is_said_so(application: Shell, folder: str) -> None:
    application.write("file", "")
    said = application.run("-m", "taskflow", "demo", "--limit", "1", "--folder", folder, code=3)
    assert said.startswith("taskflow: --folder ")
    assert "Traceback" not in said


def pasted(shell: Shell, line: str) -> str:
    """Return the line's output in a shell."""
    ran = subprocess.run(line, shell=True, cwd=shell.folder, env=shell.environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def the_first_files(count: int) -> list[Path]:
    """Return files of the standard library in the demo's order: folder by folder from the top, names sorted."""
    files: list[Path] = []
    for folder, subfolders, names in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = sorted(set(subfolders) - {"site-packages", "dist-packages", "__pycache__"})
        files += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    return files[:count]


def figure(said: str, name: str) -> int:
    found = re.search(rf"^{name} +([\d,]+)$", said, re.MULTILINE)
    assert found is not None, said
    return int(found[1].replace(",", ""))
