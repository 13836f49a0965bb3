"""`taskflow demo`: the main job on real input. Every file of the standard library becomes a job in a SQLite file;
a worker in another process does them; the summary is computed from the stored results."""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskflow.app.app import App, enqueue
from taskflow.app.current import default_app
from taskflow.app.handle import JobHandle
from taskflow.cli.demo_jobs import SourceFile, index
from taskflow.cli.exits import Exit
from taskflow.cli.progress import Bar
from taskflow.model.errors import TaskflowError
from taskflow.model.record import ENDED

BATCH = 200


def run(arguments: argparse.Namespace) -> int:
    files = list(source_files())[: arguments.limit]
    if not files:
        raise TaskflowError(f"there is no .py file in {sysconfig.get_path('stdlib')}: this Python has no standard library on disk")
    with _folder(arguments.folder) as folder:
        file = (folder / "demo.db").absolute()
        return asyncio.run(_demo(files, file, is_kept=arguments.folder is not None))


def source_files() -> Iterator[str]:
    """Every .py file of the standard library, without what was installed beside it."""
    root = Path(sysconfig.get_path("stdlib"))
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in ("site-packages", "dist-packages", "__pycache__"))
        for name in sorted(names):
            if name.endswith(".py"):
                yield os.path.join(folder, name)


async def _demo(files: list[str], file: Path, *, is_kept: bool) -> int:
    app = default_app()
    url = f"sqlite:///{file}"
    app.flag(broker=url)
    try:
        began = time.monotonic()
        handles = await enqueue(index.bind(path, fails_once=number == 0) for number, path in enumerate(files))
        print(f"{len(handles):,} files of the standard library are queued in {file}, {time.monotonic() - began:.2f} s")
        with _worker(url):
            began = time.monotonic()
            await _watch(app, handles)
            took = time.monotonic() - began
        return await _summarize(handles, took, url if is_kept else None)
    finally:
        await app.close()


async def _watch(app: App, handles: list[JobHandle[SourceFile]]) -> None:
    """Until all have ended: the queue's counts are asked for ten times a second, whatever their number."""
    bar = Bar(len(handles))
    while True:
        queues = await app.broker().console.queues()
        done = sum(queue.counts[status] for queue in queues if queue.name == index.queue for status in ENDED)
        bar.show(done)
        if done >= len(handles):
            bar.close()
            return
        await asyncio.sleep(0.1)


async def _summarize(handles: list[JobHandle[SourceFile]], took: float, url: str | None) -> int:
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
    print(f"files        {len(results):,}")
    print(f"lines        {sum(result.lines for result in results):,}")
    print(f"definitions  {sum(result.definitions or 0 for result in results):,}")
    print(f"not parsed   {sum(result.definitions is None for result in results):,}")
    print(f"distinct     {len({result.sha256 for result in results}):,}")
    print(f"imported     {', '.join(f'{name} ({count:,})' for name, count in imports.most_common(5))}")
    print(f"retries      {retries:,}")
    print(f"failed       {failed:,}")
    print(f"jobs/s       {len(handles) / took:,.0f}")
    if url is not None:
        print(f"The queue is kept: taskflow worker taskflow.cli.demo_jobs --broker {url} --drain")
    return Exit.FAILED if failed else Exit.OK


@contextmanager
def _worker(url: str) -> Iterator[None]:
    """A real worker, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "taskflow",
        "worker",
        "taskflow.cli.demo_jobs",
        "--broker",
        url,
        "--queues",
        index.queue,
        "--log-level",
        "warning",
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def _folder(given: str | None) -> Iterator[Path]:
    if given is not None:
        folder = Path(given)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TaskflowError(f"--folder {given}: {error.strerror}; name a folder that can be made or written") from error
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="taskflow-demo-") as folder_name:
        yield Path(folder_name)
