"""A worker with child processes, and what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskflow import JobFailed, JobHandle, Worker
from taskflow.app.events import Event
from taskflow.worker.children.messages import Handshake
from taskflow.worker.children.process import ChildOptions
from taskflow.worker.events import ChildPrinted
from taskflow.worker.options import WorkerOptions
from tests.support.waiting import until

TIMEOUT = 30.0

HANDSHAKE = Handshake(
    modules=(), arguments=(), settings={"max_payload": 1 << 20, "defaults": {}}, is_reachable=False, has_lifespan=False, log_level=0
)
"""The greeting of a worker without modules, for a child that is started without a worker."""


class Lines:
    """The lines that children have written: (job, stream, line)."""

    def __init__(self) -> None:
        self.printed: list[ChildPrinted] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, ChildPrinted):
            self.printed.append(event)

    def of(self, stream: str) -> list[str]:
        return [event.line for event in self.printed if event.stream == stream]


def a_worker(*subscribers: Callable[[Event], None], grace: float = 5.0, stop_timeout: float = 2.0, **of_children: Any) -> Worker:
    children = ChildOptions(**{"at_once": 2, **of_children})
    return Worker(options=WorkerOptions(subscribers=subscribers, grace=grace, stop_timeout=stop_timeout, ttl=2.0, children=children))


async def failure(handle: JobHandle[Any]) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        await handle.result(TIMEOUT)
    return caught.value


async def written(note: Path) -> list[int]:
    """Return the numbers that a job has written to the file, once it has."""
    async with asyncio.timeout(TIMEOUT):
        while not (numbers := read(note)):  # noqa: ASYNC110  # another process writes it
            await asyncio.sleep(0.01)
    return [int(number) for number in numbers]


def read(note: Path) -> list[str]:
    return note.read_text().split() if note.exists() else []


async def gone(*pids: int) -> None:
    await until(lambda: not any(is_alive(pid) for pid in pids))


def is_alive(pid: int) -> bool:
    """Return True if the process is neither gone nor a zombie that its parent has not reaped yet."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
