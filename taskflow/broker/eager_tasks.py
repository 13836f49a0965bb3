"""Starts tasks eagerly on Python 3.12 and newer: the first step runs
at once, so a task that never waits needs no turn of the event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, Final

if sys.version_info >= (3, 12):
    STARTS_AT_ONCE: Final = True

    def started(loop: asyncio.AbstractEventLoop, run: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.Task(run, loop=loop, eager_start=True)

else:
    STARTS_AT_ONCE: Final = False

    def started(loop: asyncio.AbstractEventLoop, run: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return loop.create_task(run)
