"""The job of `taskflow bench`."""

from __future__ import annotations

import time

from taskflow import job


@job(name="taskflow.bench.nothing", queue="bench", max_attempts=1)
async def nothing() -> float:
    """Return the time of the start, on the clock that all processes of a machine share."""
    return time.monotonic()
