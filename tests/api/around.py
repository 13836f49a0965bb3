# ruff: noqa: E501  # the block stands as it was promised
from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskflow import EnqueueCall, EnqueueNext, JobContext, Middleware, RunNext, Verdict, configure


@asynccontextmanager
async def resources() -> AsyncIterator[str]:
    yield "a resource"


# fmt: off
async def block_9_1() -> None:
    # block 9.1
    class Timing(Middleware):
        async def enqueue(self, call: EnqueueCall, call_next: EnqueueNext) -> None:     # headers: str to str, travel with the job
            call.headers["sent-by"] = "web"
            await call_next(call)

        async def run(self, context: JobContext, call_next: RunNext) -> Verdict:        # sees the verdict about to be settled, and whether it is final
            verdict = await call_next(context)
            print(verdict, verdict.is_final)
            return verdict

    configure(middleware=[Timing()], lifespan=resources)     # lifespan: an async context manager per worker; what it yields is ctx.state
    # end of block
