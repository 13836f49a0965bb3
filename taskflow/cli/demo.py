"""`taskflow demo`: real jobs on real input. Python files on this machine become jobs in a SQLite file, a worker in another process runs
them, and the summary is computed from the stored results."""

from __future__ import annotations

import argparse
import ast
import asyncio
import hashlib
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final
from urllib.parse import quote

from taskflow import Backoff, JobContext, job
from taskflow.app.app import App, default_app
from taskflow.app.handle import JobHandle
from taskflow.app.sending import enqueue
from taskflow.cli.exit_codes import Exit
from taskflow.cli.terminal import Bar
from taskflow.cli.worker_options import PREFIX
from taskflow.model.errors import BrokerRefused, TaskflowError
from taskflow.model.record import ENDED

BATCH: Final = 200

# Appends the package's folder to sys.path, so that the package is found in a clone that is not installed.
_START: Final = "import sys; sys.path.append(sys.argv.pop(1)); from taskflow.cli.main import program; raise SystemExit(program())"


@dataclass(frozen=True)
class SourceFile:
    """The facts about one file: its SHA-256, how many lines and definitions it has, and which modules it imports.

    `definitions` is None if the file cannot be parsed. Some test suites contain such files on purpose.
    """

    path: str
    sha256: str
    lines: int
    definitions: int | None
    imports: list[str]


@job(name="taskflow.demo.index", queue="demo", retry=Backoff(base=0.5), keep_result=3600)
def index(ctx: JobContext, path: str, *, fails_once: bool = False) -> SourceFile:
    if fails_once and ctx.attempt == 1:
        raise OSError(f"{path}: this attempt fails on purpose, to show a retry")
    content = Path(path).read_bytes()
    definitions, imports = _parsed(content)
    return SourceFile(path, hashlib.sha256(content).hexdigest(), content.count(b"\n"), definitions, imports)


def _parsed(content: bytes) -> tuple[int | None, list[str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError, RecursionError):
        return None, []
    definitions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in nodes)
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return definitions, sorted({name.partition(".")[0] for name in imported})


def demo(arguments: argparse.Namespace) -> int:
    files = list(islice(source_files(), arguments.limit))
    if not files:
        raise TaskflowError("found no readable .py file: this Python has no standard library on disk")
    given: str | None = arguments.folder
    try:
        folder = os.path.abspath(given if given is not None else tempfile.mkdtemp(prefix="taskflow-demo-"))
        os.makedirs(folder, exist_ok=True)
        descriptor, file = tempfile.mkstemp(".db", "demo-", folder)
    except OSError as error:
        where = f"--folder {given}" if given is not None else "no temporary folder"
        raise BrokerRefused(f"{where}: {error.strerror}; name a writable folder with --folder") from error
    os.close(descriptor)
    return asyncio.run(_demo(files, file))


def source_files() -> Iterator[str]:
    """Yield the paths of readable Python files: this Python's standard library, then its installed packages. The order is always the
    same: folder by folder from the top, with names sorted."""
    for root in dict.fromkeys(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")):
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(set(subfolders) - {"site-packages", "dist-packages", "__pycache__"})
            for path in (os.path.join(folder, name) for name in sorted(names) if name.endswith(".py")):
                if os.access(path, os.R_OK):  # skips other users' private files and broken links
                    yield path


async def _demo(files: list[str], file: str) -> int:
    app = default_app()
    url = f"sqlite:///{quote(file)}"
    app.flag(broker=url)
    try:
        began = time.monotonic()
        handles = await enqueue(index.bind(path, fails_once=number == 0) for number, path in enumerate(files))
        print(f"{len(handles):,} Python files queued in {file}, {time.monotonic() - began:.2f} s")
        bar = Bar(len(handles))
        with _worker_process(url) as worker:
            began = time.monotonic()
            await _watch(app, bar, worker)
            took = time.monotonic() - began
        failed = await _summarize(handles, took)
        script, broker = sys.argv[0], f"--broker {shlex.quote(url)}"
        command = shlex.quote(script) if Path(script).name == "taskflow" else f"{shlex.quote(sys.executable)} -m taskflow"
        print("\nThe queue is kept. Try next:")
        print(f"  {command} status {broker}")
        print(f"  {command} jobs {broker} --limit 10")
        print(f"  {command} jobs {handles[0].id} {broker}    # the one that failed once")
        return Exit.FAILED if failed else Exit.OK
    finally:
        await app.close()


@contextmanager
def _worker_process(url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a real worker process, in the root folder, so that a `queue.py` in the user's folder does not hide Python's own."""
    command = [sys.executable, "-P", "-c", _START, str(Path(__file__).parents[2])]
    command += ["worker", "taskflow.cli.demo", "--queues", index.queue, "--log-level", "error"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)} | {"TASKFLOW_BROKER": url}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd="/", env=environment) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


async def _watch(app: App, bar: Bar, worker: subprocess.Popen[bytes]) -> None:
    """Wait until all jobs have ended, updating the progress bar ten times a second.

    Raises TaskflowError if the worker exits before that.
    """
    total = bar.total
    while True:
        code = worker.poll()  # polled before the count, so that the count includes all its work
        queues = await app.broker().console.queues()
        done = sum(queue.counts[status] for queue in queues if queue.name == index.queue for status in ENDED)
        bar.show(done)
        if done >= total:
            bar.close()
            return
        if code is not None:
            bar.close()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise TaskflowError(
                f"the worker ended too early ({how}): {done:,} of {total:,} jobs are done, the others wait for another worker"
            )
        await asyncio.sleep(0.1)


async def _summarize(handles: list[JobHandle[SourceFile]], took: float) -> int:
    """Print the summary. Return the number of failed jobs."""
    results: list[SourceFile] = []
    retries = failed = 0
    for start in range(0, len(handles), BATCH):
        for info in await asyncio.gather(*(handle.info() for handle in handles[start : start + BATCH])):
            if info is None or not isinstance(info.result, SourceFile):
                failed += 1
                continue
            results.append(info.result)
            retries += info.failures
    imports = Counter(name for result in results for name in result.imports)
    most_imported = sorted(imports.items(), key=lambda found: (-found[1], found[0]))[:5]
    print(f"files        {len(results):,}")
    print(f"lines        {sum(result.lines for result in results):,}")
    print(f"definitions  {sum(result.definitions or 0 for result in results):,}")
    print(f"not parsed   {sum(result.definitions is None for result in results):,}")
    print(f"distinct     {len({result.sha256 for result in results}):,}")
    print(f"imported     {', '.join(f'{name} ({count:,})' for name, count in most_imported)}")
    print(f"retries      {retries:,}")
    print(f"failed       {failed:,}")
    print(f"jobs/s       {len(handles) / took:,.0f}")
    return failed
