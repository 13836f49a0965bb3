"""Retries the jobs of a cause in stages: one job, then ten, then all others. Stops if a job fails again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from taskflow.app.bulk_actions import ActionResult, CallBroker, perform
from taskflow.broker.admin import View
from taskflow.model.printable import duration
from taskflow.model.record import Record, Status

STAGES: Final = (1, 10)
CHECK_INTERVAL: Final = 1.0  # seconds between two checks of a stage's jobs
MAX_WAIT: Final = 600.0  # seconds for which a stage waits for its jobs


class StagesStopped(Exception):
    """Raised when a stage fails or takes too long. The jobs of later stages are not retried."""


async def retry_in_stages(
    call: CallBroker, ids: Sequence[bytes], *, by: str | None, reason: str
) -> AsyncIterator[tuple[ActionResult, str]]:
    """Retry jobs in order. Yield the totals so far, and what the next stage is waiting for. Raises StagesStopped."""
    done, left = ActionResult(), list(ids)
    for size in (*STAGES, len(left)):
        stage, left = left[:size], left[size:]
        if not stage:
            return
        before = await _read(call, stage)
        result = ActionResult()
        async for result in perform(call, "retry", stage, View(), by=by, reason=reason):
            yield done + result, ""
        done += result
        if left:
            async for waiting in _ends(call, stage, before, len(left)):
                jobs = f"{waiting:,} of {len(stage):,} job{'s' if len(stage) > 1 else ''} of this stage"
                yield done, f"{jobs} {_have(waiting)} not ended yet"


async def _read(call: CallBroker, ids: Sequence[bytes]) -> dict[bytes, Record | None]:
    return dict(zip(ids, await call(lambda broker: broker.read(ids)), strict=True))


async def _ends(call: CallBroker, stage: Sequence[bytes], before: Mapping[bytes, Record | None], left: int) -> AsyncIterator[int]:
    """Wait until the jobs of a stage have ended, and yield how many haven't yet. A job without a record has usually succeeded."""
    waiting, gives_up_at = list(stage), time.monotonic() + MAX_WAIT
    rest = f"The other {left:,} remain{'s' if left == 1 else ''} failed"
    while True:
        found = await _read(call, waiting)
        failures = [why for job_id, record in found.items() if (why := _failure(record, before[job_id])) is not None]
        if failures:
            raise StagesStopped(f"{len(failures):,} of {len(stage):,} failed again: {failures[0]}. {rest}")
        waiting = [job_id for job_id, record in found.items() if record is not None and record.ended_at is None]
        if not waiting:
            return
        if time.monotonic() > gives_up_at:
            raise StagesStopped(f"{len(waiting):,} of {len(stage):,} {_have(len(waiting))} not ended within {duration(MAX_WAIT)}. {rest}")
        yield len(waiting)
        await asyncio.sleep(CHECK_INTERVAL)


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _failure(record: Record | None, before: Record | None) -> str | None:
    """Return the error of a run that has failed since `before` was read, or None."""
    if record is None or before is None:
        return None
    if record.status is Status.FAILED and record.ended_at != before.ended_at:
        return record.reason or "unknown cause"
    if record.errors and record.errors[-1:] != before.errors[-1:]:
        return f"{record.errors[-1].type}: {record.errors[-1].message}"
    return None
