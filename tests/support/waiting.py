"""Waits for events in other processes and threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from taskflow import JobHandle, Status

_INTERVAL: Final = 0.02


async def until(holds: Callable[[], Any], within: float = 60.0) -> None:
    """Check a condition, which may be a coroutine function, repeatedly until it is true.

    Raises:
        TimeoutError: it was not true within `within` seconds.
    """
    async with asyncio.timeout(within):
        while True:
            found = holds()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(_INTERVAL)


async def until_running(handle: JobHandle[Any]) -> None:
    """Wait until a worker has claimed the job. No event reports that to the sender."""

    async def is_running() -> bool:
        return await handle.status() is Status.RUNNING

    await until(is_running)
