"""The narrowest path, for real: a process that sends, a worker in another, a SQLite file between them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

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


def environment() -> dict[str, str]:
    return {**os.environ, "TASKFLOW_BROKER": "sqlite:///queue.db", "PYTHONPATH": ""}


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


def test_the_demo_counts_what_is_there(tmp_path: Path) -> None:
    """Its figures are those of an independent count of the same files."""
    said = run(tmp_path, "-m", "taskflow", "demo", "--limit", "60", "--folder", str(tmp_path / "demo"))
    contents = [file.read_bytes() for file in the_first_files(60)]
    assert figure(said, "files") == 60
    assert figure(said, "lines") == sum(content.count(b"\n") for content in contents)
    assert figure(said, "distinct") == len({hashlib.sha256(content).digest() for content in contents})
    assert figure(said, "retries") == 1
    assert figure(said, "failed") == 0


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "taskflow", "demo", "--limit", "1", "--folder", str(tmp_path / "file" / "inside")]
    ran = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert ran.stderr.startswith("taskflow: --folder ")
    assert "Traceback" not in ran.stderr


def the_first_files(count: int) -> list[Path]:
    """In the demo's order: folder by folder from the top, names sorted."""
    found: list[Path] = []
    for folder, subfolders, names in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = sorted(set(subfolders) - {"site-packages", "dist-packages", "__pycache__"})
        found += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    return found[:count]


def figure(said: str, name: str) -> int:
    found = re.search(rf"^{name} +([\d,]+)$", said, re.MULTILINE)
    assert found is not None, said
    return int(found[1].replace(",", ""))
