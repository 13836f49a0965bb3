# ruff: noqa: E501, E702, F841, I001  # the block stands as it was promised
from __future__ import annotations


# fmt: off
async def block_11_1() -> None:
    # block 11.1
    from taskflow import operate                                             # what the command line does, for applications; async, and through run_sync

    queues, workers = await operate.queues(), await operate.workers()
    async for info in operate.jobs(tag="import:42", status="failed"):
        print(info.id, info.error)
    await operate.cancel(tag="import:42"); await operate.retry(tag="import:42")
    # end of block
