"""Repeats a call to the store until it is answered."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from taskflow.model.pauses import Pauses, Retries

T = TypeVar("T")


async def retry(
    call: Callable[[], Awaitable[T]],
    pauses: Pauses,
    *,
    on: type[Exception],
    note: Callable[[Exception, int], None] | None = None,
    draw: Callable[[], float] | None = None,
    give_up_at: float = math.inf,
) -> T:
    """Call `call` until it does not raise `on`, and return its result.

    `note` is called with each failure and the number of consecutive failures; an error that it raises ends the loop. If the next attempt
    would not begin before `give_up_at` (a `time.monotonic()` value), the last failure is raised. `draw` varies the pauses: see `Retries`.
    """
    retries = Retries(pauses, draw)
    while True:
        try:
            return await call()
        except on as error:
            pause = retries.failed()
            if note is not None:
                note(error, retries.failures)
            if time.monotonic() + pause >= give_up_at:
                raise
        await asyncio.sleep(pause)
