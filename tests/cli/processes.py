"""Commands as processes, whose output is awaited line by line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Self

import pytest

from taskflow.broker.url import connect
from tests.support.forks import run_in_fork
from tests.support.processes import is_stopped

# Long enough for a busy machine. A process that takes this long has hung.
TIMEOUT = 60.0

LEDGER = """
import os

def write(line: str) -> None:
    file = os.open(os.environ.get("LEDGER", "ledger"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{line}\\n".encode())
    os.close(file)
"""
"""The beginning of a module of jobs that keep a ledger: each line is one write, whichever process writes it."""

JOBS = (
    LEDGER
    + """
import asyncio, threading, time
from pathlib import Path
from taskflow import JobContext, job

@job
async def brief(n: int, seconds: float = 0.01) -> None:
    await asyncio.sleep(seconds)
    write(str(n))

@job
def brief_in_a_thread(n: int) -> None:
    time.sleep(0.01)
    write(str(n))

@job
async def wait(ctx: JobContext, n: int = 0) -> None:
    print(f"begun by {os.getpid()}, attempt {ctx.attempt}\\n", end="", flush=True)
    while not Path("release").exists():
        await asyncio.sleep(0.005)
    write("ended")

@job
async def swallow(n: int = 0) -> None:
    print("begun\\n", end="", flush=True)
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

@job
def never_return(n: int = 0) -> None:
    print("begun\\n", end="", flush=True)
    threading.Event().wait()

@job
async def block() -> None:
    print("begun\\n", end="", flush=True)
    while not Path("release").exists():
        time.sleep(0.005)
"""
)
"""A module of jobs that end at once, when the test writes the file `release`, or never."""

on_each_broker = pytest.mark.parametrize("new_store", ["sqlite", "redis", "postgres"], indirect=True)
"""The test's shell has a new store, of each kind in turn."""

WHERE_IT_STOOD = re.compile(r"^.*blocks the event loop.*\n(?:[ \t].*\n)*", re.MULTILINE)
"""A worker's report of a loop that a busy machine has blocked: a stack, and no traceback."""

FAILED_JOB = re.compile(r"^.* failed for good.*\n(?:(?!\d{4}-\d\d-\d\d ).*\n)*", re.MULTILINE)
"""A job's failure with its traceback, which may include our loop."""

# Frames of code that the user has not written. Python reports a Ctrl-C while Python itself, or the bare package, is being loaded,
# and the fault handler of a crashed process names every thread's frames.
OUR_FRAMES = re.compile(r'File ".*/taskflow/(?:cli|worker|app|broker|model)/[^"]*", line \d+, in ')


class Running:
    """A process; `said` is its output so far, standard output and error together."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: list[str] = []
        self._arrived = threading.Condition()
        streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
        self._readers = [threading.Thread(target=self._read, args=(stream,), daemon=True) for stream in streams]
        for reader in self._readers:
            reader.start()

    @property
    def said(self) -> str:
        return "".join(self._lines)

    def wait_for(self, pattern: str, times: int = 1) -> None:
        """Wait until this many lines with the pattern have been printed."""
        give_up_at = time.monotonic() + TIMEOUT
        with self._arrived:
            while sum(bool(re.search(pattern, line)) for line in self._lines) < times:
                left = give_up_at - time.monotonic()
                assert left > 0, f"{pattern!r} was not said: {self.said}"
                assert self.process.poll() is None or any(reader.is_alive() for reader in self._readers), (
                    f"ended with {self.process.returncode} before it said {pattern!r}: {self.said}"
                )
                self._arrived.wait(min(left, 0.1))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the end, and return the exit code."""
        try:
            code = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"has not ended within {TIMEOUT:g} s: {self.said}") from None
        for reader in self._readers:
            reader.join(TIMEOUT)
        return code

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._arrived:
                    self._lines.append(line)
                    self._arrived.notify_all()


class Shell:
    """A folder and the processes started in it. Their broker is the file queue.db there, unless the environment says otherwise.

    As a context manager it kills those that are still running at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "TASKFLOW_BROKER": "sqlite:///queue.db", "PYTHONUNBUFFERED": "1"}
        self._started: list[Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for running in self._started:
            if running.process.poll() is None:
                running.process.kill()
            running.end()

    def start_sooner(self) -> None:
        """Start processes without measuring coverage: that code is loaded before ours, and Python handles or loses signals meanwhile."""
        for name in [name for name in self.environment if name.startswith("COVERAGE_")]:
            del self.environment[name]

    def write(self, path: str, source: str) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))

    def start(self, *arguments: str, **more: Any) -> Running:
        """Start `python ARGUMENTS`, and do not wait for it."""
        command = [sys.executable, *arguments]
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **{"env": self.environment, **more},
        )
        self._started.append(Running(process))
        return self._started[-1]

    def taskflow(self, *arguments: str) -> Running:
        return self.start("-m", "taskflow", *arguments)

    def worker(self, *arguments: str) -> Running:
        """Start a worker of the module `tasks`, and return it once it works."""
        started = self.taskflow("worker", "tasks", *arguments)
        started.wait_for("working as")
        return started

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run `python ARGUMENTS` to its end, and return its output."""
        running = self.start(*arguments)
        ended = running.end()
        assert ended == code, f"exit code {ended}: {running.said}"
        return running.said

    def send(self, *calls: str) -> None:
        """Send calls of jobs of the module `tasks` from another process: `shell.send("add.bind(1)")`."""
        self.send_to(self.environment["TASKFLOW_BROKER"], *calls)

    def send_to(self, url: str, *calls: str) -> None:
        program = f"import tasks\nfrom tasks import *\nfrom taskflow import enqueue_sync\nenqueue_sync([{', '.join(calls)}])"
        code, said = run_in_fork(program, self.folder, {**self.environment, "TASKFLOW_BROKER": url})
        assert code == 0, said

    def suspend(self, running: Running) -> None:
        """Stop a process by SIGSTOP, on SQLite at a moment when it does not hold the store's lock: otherwise no other process could
        write."""
        url = self.environment["TASKFLOW_BROKER"]
        with contextlib.ExitStack() as held:
            if url.startswith("sqlite:///"):
                path = self.folder / url.removeprefix("sqlite:///").partition("?")[0]
                connection = held.enter_context(contextlib.closing(sqlite3.connect(path, timeout=TIMEOUT, isolation_level=None)))
                connection.execute("BEGIN IMMEDIATE")
            running.signal(signal.SIGSTOP)
            until(lambda: is_stopped(running.process.pid))

    def counts(self) -> Counter[str]:
        """Return the number of jobs in each state that has any."""
        return counts_of(re.sub("^sqlite:///(?!/)", f"sqlite:///{self.folder}/", self.environment["TASKFLOW_BROKER"]))

    def ledger(self) -> list[str]:
        """Return what jobs have recorded, one line per run."""
        file = self.folder / "ledger"
        return file.read_text().splitlines() if file.exists() else []


def counts_of(url: str) -> Counter[str]:
    """Read the store from this process, and return the number of jobs in each state that has any."""

    async def count() -> Counter[str]:
        broker = connect(url)
        try:
            counts = Counter[str]()
            for queue in await broker.admin.queues():
                counts.update({status.value: number for status, number in queue.counts.items()})
            return +counts
        finally:
            await broker.close()

    with ThreadPoolExecutor(1) as threads:  # the caller may be in an event loop
        return threads.submit(asyncio.run, count()).result()


def a_terminal() -> tuple[int, int]:
    """Open a pseudo-terminal, and return its two ends. Skips the test on a machine that has none, as in a bare container."""
    try:
        return pty.openpty()
    except OSError as error:
        pytest.skip(f"this machine has no pseudo-terminals: {error}")


def until(condition: Callable[[], bool], running: Running | None = None, timeout: float = TIMEOUT) -> None:
    give_up_at = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < give_up_at, running and running.said
        time.sleep(0.01)


def ended_clearly(running: Running, codes: Sequence[int]) -> None:
    """Assert that it ended with one of these exit codes, and without a traceback of ours."""
    code = running.end()
    assert code in codes, f"exit code {code}: {running.said}"
    assert not OUR_FRAMES.search(FAILED_JOB.sub("", WHERE_IT_STOOD.sub("", running.said))), running.said
