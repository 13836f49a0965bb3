"""The narrowest path, for real: a process that sends, a worker in another, a SQLite file between them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

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


def an_application(folder: Path) -> None:
    (folder / "app").mkdir()
    (folder / "app" / "tasks.py").write_text(TASKS)
    (folder / "send.py").write_text(SEND)


def environment(temporary: Path | None = None) -> dict[str, str]:
    given = {"TASKFLOW_BROKER": "sqlite:///queue.db", "PYTHONPATH": ""}
    return {**os.environ, **given} | ({} if temporary is None else {"TMPDIR": str(temporary)})


def run(folder: Path, *command: str, code: int = 0) -> str:
    ran = subprocess.run([sys.executable, *command], cwd=folder, env=environment(), capture_output=True, text=True, timeout=120)
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout


def test_a_worker_in_another_process_does_what_was_sent(tmp_path: Path) -> None:
    an_application(tmp_path)
    command = [sys.executable, "-m", "taskflow", "worker", "app.tasks"]
    worker = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE)
    try:
        assert run(tmp_path, "send.py").splitlines() == [str(sum(2 * n for n in range(200))), "ValueError as asked"]
    finally:
        worker.terminate()
        _, said = worker.communicate(timeout=30)
    assert worker.returncode == 0, said


def test_a_draining_worker_ends_by_itself_and_tells_of_failures(tmp_path: Path) -> None:
    an_application(tmp_path)
    run(tmp_path, "-c", "from app.tasks import add, fail; add.delay_sync(1); fail.options(max_attempts=1).delay_sync()")
    run(tmp_path, "-m", "taskflow", "worker", "app.tasks", "--drain", code=1)
    run(tmp_path, "-m", "taskflow", "worker", "app.tasks", "--drain")


# --- the demo --------------------------------------------------------------------------------------------------------


def test_the_demo_counts_what_is_there(tmp_path: Path) -> None:
    """Its figures are those of an independent count of the same files; so are those of the queue that it keeps."""
    said = demo(tmp_path, "--limit", "60")
    contents = [file.read_bytes() for file in the_first_files(60)]
    assert figure(said, "files") == 60
    assert figure(said, "lines") == sum(content.count(b"\n") for content in contents)
    assert figure(said, "definitions") > 100
    assert figure(said, "distinct") == len({hashlib.sha256(content).digest() for content in contents})
    assert figure(said, "retries") == 1
    assert figure(said, "failed") == 0
    assert re.search(r"^imported +\w+ \(\d+\), ", said, re.MULTILINE)
    assert "60 of 60 done" in said.splitlines()
    [file] = (tmp_path / "demo").glob("demo-*.db")
    assert done_in(file) == 60
    assert [file.name for file in (tmp_path / "demo").iterdir() if file.stat().st_mode & 0o077] == []  # for their owner alone


def test_what_the_demo_says_to_type_next_works(tmp_path: Path) -> None:
    """Pasted into the shell it was called from; also when no folder is named, and when the folder's name is odd."""
    script = shlex.quote(str(Path(sys.executable).with_name("taskflow")))
    python = f"{shlex.quote(sys.executable)} -m taskflow"
    for command in (f"{script} demo --limit 2", f"{python} demo --limit 2 --folder 'a b%20?#&c'"):
        status, jobs, one = (shell(tmp_path, line) for line in shell(tmp_path, command).splitlines()[-3:])
        assert re.search(r"^demo +0 +0 +0 +0 +2 +0 +0$", status, re.MULTILINE)
        assert jobs.count("succeeded") == 2
        assert "attempt 1: OSError: " in one
        assert "on purpose" in one


def test_the_demo_is_not_confused_by_modules_in_the_current_folder(tmp_path: Path) -> None:
    for name in ("taskflow", "queue", "hashlib", "ast"):
        (tmp_path / f"{name}.py").write_text("raise AssertionError('not this one')\n")
    shell(tmp_path, f"{shlex.quote(str(Path(sys.executable).with_name('taskflow')))} demo --limit 2")


@pytest.mark.parametrize("moment", ["at its start", "half way"])
def test_a_demo_whose_worker_dies_ends(tmp_path: Path, moment: str) -> None:
    command = [sys.executable, "-m", "taskflow", "demo", "--folder", "demo"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    awaited = b"0 of " if moment == "at its start" else b"[1-9][0-9,]* of "
    while not re.match(awaited, process.stdout.readline()):
        assert process.poll() is None
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"taskflow: the worker ended too early (SIGKILL): " in said


@pytest.mark.parametrize("folder", ["file/inside", "/proc"])
def test_a_folder_that_cannot_be_made_or_written_is_said_so(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "taskflow", "demo", "--limit", "1", "--folder", folder]
    ran = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert ran.returncode == 3
    assert ran.stderr.startswith("taskflow: --folder ")
    assert "Traceback" not in ran.stderr


def demo(folder: Path, *flags: str) -> str:
    return run(folder, "-m", "taskflow", "demo", "--folder", "demo", *flags)


def shell(folder: Path, line: str) -> str:
    ran = subprocess.run(line, shell=True, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def done_in(file: Path) -> int:
    [queue] = json.loads(run(file.parent, "-m", "taskflow", "queues", "--json", "--broker", f"sqlite:///{file}"))
    counts = {status: count for status, count in queue["counts"].items() if count}
    assert list(counts) == ["succeeded"]
    return int(counts["succeeded"])


def the_first_files(count: int) -> list[Path]:
    """Of the standard library, in the demo's order: folder by folder from the top, names sorted."""
    files: list[Path] = []
    for folder, subfolders, names in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = sorted(set(subfolders) - {"site-packages", "dist-packages", "__pycache__"})
        files += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    return files[:count]


def figure(said: str, name: str) -> int:
    found = re.search(rf"^{name} +([\d,]+)$", said, re.MULTILINE)
    assert found is not None, said
    return int(found[1].replace(",", ""))
