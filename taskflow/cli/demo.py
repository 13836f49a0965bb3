"""`taskflow demo`: real jobs on real input. Python files on this machine become jobs in a SQLite file, a worker in another process runs
them, and the summary is computed from the stored results."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final
from urllib.parse import quote

from taskflow.app.app import App, default_app
from taskflow.app.handle import JobHandle
from taskflow.app.sending import enqueue
from taskflow.cli.demo_files import source_files
from taskflow.cli.demo_jobs import SourceFile, index
from taskflow.cli.exit_codes import Exit
from taskflow.cli.progress_bar import Bar
from taskflow.cli.worker_process import worker_process
from taskflow.model.errors import BrokerRefused, TaskflowError
from taskflow.model.record import ENDED

BATCH: Final = 200


def run(arguments: argparse.Namespace) -> int:
    files = list(islice(source_files(), arguments.limit))
    if not files:
        raise TaskflowError("found no readable .py file: this Python has no standard library on disk")
    return asyncio.run(_demo(files, _a_fresh_file(arguments.folder)))


async def _demo(files: list[str], file: Path) -> int:
    app = default_app()
    url = f"sqlite:///{quote(str(file))}"
    app.flag(broker=url)
    try:
        began = time.monotonic()
        handles = await enqueue(index.bind(path, fails_once=number == 0) for number, path in enumerate(files))
        print(f"{len(handles):,} Python files queued in {file}, {time.monotonic() - began:.2f} s")
        bar = Bar(len(handles))
        with worker_process(url, "taskflow.cli.demo_jobs", "--queues", index.queue, say=bar.say) as worker:
            began = time.monotonic()
            await _watch(app, bar, worker)
            took = time.monotonic() - began
        failed = await _summarize(handles, took)
        _tell_next(url, handles[0].id)
        return Exit.FAILED if failed else Exit.OK
    finally:
        await app.close()


def _a_fresh_file(given: str | None) -> Path:
    """Create a file in the given folder, or in a temporary one, and return its path:
    demo.db, or demo-2.db after an earlier demo. The file is kept."""
    try:
        folder = Path(given if given is not None else tempfile.mkdtemp(prefix="taskflow-demo-")).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            file = folder / (f"demo-{number}.db" if number > 1 else "demo.db")
            with suppress(FileExistsError):
                file.touch(0o600, exist_ok=False)
                return file
            number += 1
    except OSError as error:
        where = f"--folder {given}" if given is not None else "no temporary folder"
        raise BrokerRefused(f"{where}: {error.strerror}; name a writable folder with --folder") from error


async def _watch(app: App, bar: Bar, worker: subprocess.Popen[str]) -> None:
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


# --- the summary ----------------------------------------------------------------------------------------------------


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


def _tell_next(url: str, failed_once: str) -> None:
    command, broker = _as_called(), f"--broker {shlex.quote(url)}"
    print("\nThe queue is kept. Try next:")
    print(f"  {command} status {broker}")
    print(f"  {command} jobs {broker} --limit 10")
    print(f"  {command} jobs {failed_once} {broker}    # the one that failed once")


def _as_called() -> str:
    """Return the command with which the user can run taskflow again from the same folder."""
    script = sys.argv[0]
    if Path(script).name != "taskflow":
        return f"{shlex.quote(sys.executable)} -m taskflow"
    found = shutil.which("taskflow")
    return "taskflow" if found is not None and os.path.realpath(found) == os.path.realpath(script) else shlex.quote(script)
