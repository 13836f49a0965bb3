"""How many of the package's files one warm job enters, from `delay()` to its result: what a reader who follows it has to read."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

import pytest

import taskflow
from taskflow import Worker
from taskflow.app.app import default_app
from taskflow.broker.url import connect
from taskflow.worker.options import WorkerOptions
from tests.support.postgres import shared_postgres
from tests.support.servers import shared_redis

PACKAGE: Final = str(Path(taskflow.__file__).parent)

URLS: Final[dict[str, Callable[[Path], str]]] = {
    "memory": lambda folder: "memory://",
    "sqlite": lambda folder: f"sqlite:///{folder}/jobs.db",
    "redis": lambda folder: f"redis://127.0.0.1:{shared_redis().port}?namespace={folder.name}",
    "postgres": lambda folder: shared_postgres().url(shared_postgres().new_database()),
}
MAX_FILES: Final = {"memory": 42, "sqlite": 52, "redis": 46, "postgres": 47}


class Entered:
    """Collects the files whose functions are called while `is_on`."""

    def __init__(self) -> None:
        self.files = set[str]()
        self.is_on = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if self.is_on and event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            self.files.add(frame.f_code.co_filename.removeprefix(PACKAGE))


@taskflow.job(name="tests.worker.entered")
async def entered(number: int) -> int:
    return number


async def files_of_one_job(profiler: Entered) -> set[str]:
    profiler.files = set()
    profiler.is_on = True
    assert await (await entered.delay(7)).result(20) == 7
    profiler.is_on = False
    return profiler.files


@pytest.mark.unmeasured
@pytest.mark.parametrize("kind", URLS)
async def test_a_warm_job_enters_few_files(kind: str, tmp_path: Path) -> None:
    profiler, before = Entered(), sys.getprofile()
    threading.setprofile(profiler)
    sys.setprofile(profiler)
    try:
        with default_app().using(connect(URLS[kind](tmp_path))):
            async with Worker(options=WorkerOptions()):
                for number in range(5):
                    await (await entered.delay(number)).result(20)
                await asyncio.sleep(0.3)
                found = [await files_of_one_job(profiler) for _ in range(5)]
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    fewest = min(found, key=len)  # a heartbeat or maintenance may come in between
    assert len(fewest) <= MAX_FILES[kind], sorted(fewest)
