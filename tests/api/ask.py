# ruff: noqa: E501, F841  # the block stands as it was promised
from __future__ import annotations

from taskflow import JobHandle
from tests.api.define import add


# fmt: off
async def block_3_1(handle: JobHandle[int], job_id: str) -> None:
    # block 3.1
    value = await handle.result(timeout=10)  # R; raises JobFailed (type, message, traceback text), JobCancelled, ResultExpired, TimeoutError
    status = await handle.status()           # Status.HELD SCHEDULED READY RUNNING SUCCEEDED FAILED CANCELLED, or None: unknown (any more)
    info = await handle.info()               # the record: attempt, errors of each run, times, progress, queue, worker, result
    found = await handle.cancel()            # waiting: at once; running: its scope is cancelled wherever it runs
    other = JobHandle.of(job_id, job=add)    # from an id kept elsewhere; without job=, JobHandle[Any]
    # end of block
