# ruff: noqa: E501, F841  # the block stands as it was promised
# mypy: disable-error-code="union-attr"
# pyright: reportOptionalMemberAccess=false
# info() may return None, which the promise leaves to the reader
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
    live = await add.live("sum:1:2")          # the live job with that key, or None
    await handle.run_now()                   # a scheduled job becomes ready
    print(info.arguments, info.tags)         # decoded where the job is known here
    # end of block
