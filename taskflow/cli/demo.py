"""`taskflow demo`: indexes this machine's Python files with a worker in another process, and sums up the stored results."""

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


@dataclass(frozen=True)
class SourceFile:
    path: str
    sha256: str
    lines: int
    definitions: int | None  # None if it cannot be parsed: some test suites contain such files on purpose
    imports: list[str]


@job(name="taskflow.demo.index", queue="demo", retry=Backoff(base=0.5), keep_result=3600)
def index(ctx: JobContext, path: str, *, fails_once: bool = False) -> SourceFile:
    if fails_once and ctx.attempt == 1:
        raise OSError(f"{path}: this attempt fails on purpose, to show a retry")
    content = Path(path).read_bytes()
    digest, lines = hashlib.sha256(content).hexdigest(), content.count(b"\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError, RecursionError):
        return SourceFile(path, digest, lines, None, [])
    definitions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in nodes)
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return SourceFile(path, digest, lines, definitions, sorted({name.partition(".")[0] for name in imported}))


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
    """Yield the readable Python files of the standard library, then of installed packages, each folder before its subfolders."""
    for root in dict.fromkeys(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")):
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(set(subfolders) - {"site-packages", "dist-packages", "__pycache__"})
            for path in (os.path.join(folder, name) for name in sorted(names) if name.endswith(".py")):
                if os.access(path, os.R_OK):  # skips other users' private files and broken links
                    yield path


async def _demo(files: list[str], file: str) -> int:
    app, url = default_app(), f"sqlite:///{quote(file)}"
    app.flag(broker=url)
    try:
        began = time.monotonic()
        handles = await enqueue(index.bind(path, fails_once=number == 0) for number, path in enumerate(files))
        print(f"{len(handles):,} Python files queued in {file}, {time.monotonic() - began:.2f} s")
        with _worker_process(url) as worker:
            began = time.monotonic()
            await _watch(app, Bar(len(handles)), worker)
            took = time.monotonic() - began
        has_failed = await _summarize(handles, took)
        is_script = Path(sys.argv[0]).name == "taskflow"
        command = shlex.quote(sys.argv[0]) if is_script else f"{shlex.quote(sys.executable)} -m taskflow"
        print("\nThe queue is kept. Try next:")
        for words in ("status {}", "jobs {} --limit 10", f"jobs {handles[0].id} {{}}    # the one that failed once"):
            print(f"  {command} {words.format(f'--broker {shlex.quote(url)}')}")
        return Exit.FAILED if has_failed else Exit.OK
    finally:
        await app.close()


@contextmanager
def _worker_process(url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker in another process during the block. Its folder is the root, because a `queue.py` in the user's folder would hide
    Python's own."""
    command = [sys.executable, "-P", "-m", "taskflow", "worker", __name__, "--queues", index.queue, "--log-level", "error"]
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
    """Show the progress until all jobs have ended. Raises TaskflowError if the worker exits before that."""
    while True:
        code = worker.poll()  # polled before the count, so that the count includes all of the worker's work
        queues = await app.broker().admin.queues()
        done = sum(queue.counts[status] for queue in queues if queue.name == index.queue for status in ENDED)
        bar.show(done)
        if done >= bar.total or code is not None:
            break
        await asyncio.sleep(0.1)
    bar.close()
    if done < bar.total and code is not None:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        counts = f"{done:,} of {bar.total:,} jobs are done; the others wait for another worker"
        raise TaskflowError(f"the worker ended too early ({how}): {counts}")


async def _summarize(handles: list[JobHandle[SourceFile]], took: float) -> bool:
    """Print the summary. Return True if a job has no result."""
    infos = []
    for start in range(0, len(handles), BATCH):
        infos += await asyncio.gather(*(handle.info() for handle in handles[start : start + BATCH]))
    ended = [info for info in infos if info is not None and isinstance(info.result, SourceFile)]
    results = [info.result for info in ended if info.result is not None]
    imports = Counter(name for result in results for name in result.imports)
    most_imported = sorted(imports.items(), key=lambda found: (-found[1], found[0]))[:5]
    figures = {
        "files": f"{len(results):,}",
        "lines": f"{sum(result.lines for result in results):,}",
        "definitions": f"{sum(result.definitions or 0 for result in results):,}",
        "not parsed": f"{sum(result.definitions is None for result in results):,}",
        "distinct": f"{len({result.sha256 for result in results}):,}",
        "imported": ", ".join(f"{name} ({count:,})" for name, count in most_imported),
        "retries": f"{sum(info.failures for info in ended):,}",
        "failed": f"{len(handles) - len(results):,}",
        "jobs/s": f"{len(handles) / took:,.0f}",
    }
    for name, figure in figures.items():
        print(f"{name:12} {figure}")
    return len(results) < len(handles)
