"""Section 4 has no block: its lines stand in running text, each of them is here."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import create_async_engine

from taskflow import Backoff, Cancel, Discard, JobContext, Retry, Snooze, job

connect = create_async_engine("sqlite+aiosqlite://").connect
"""A test sets it to that of the broker's database."""


@job(name="api.say.again", max_attempts=2)
async def again() -> None:
    raise Retry(after=30)


@job(name="api.say.in_an_hour", max_attempts=1)
async def in_an_hour() -> None:
    raise Snooze(after=3600)


@job(name="api.say.never")
async def never() -> None:
    raise Discard("why")


@job(name="api.say.no_more")
async def no_more() -> None:
    raise Cancel("why")


# fmt: off
@job(retry=Backoff(base=1, factor=3, max=600, jitter=True), retry_on=(OSError,), discard_on=(ValueError,))
async def choosy(error: str) -> None:
    raise {"OSError": OSError, "ValueError": ValueError, "KeyError": KeyError}[error](error)
# fmt: on


@job(name="api.say.completes")
async def completes(ctx: JobContext) -> str:
    async with connect() as connection, connection.begin():
        await ctx.complete_in(connection, result="receipt")
    return "ignored"


@job(name="api.say.fences")
async def fences(ctx: JobContext) -> tuple[str, int]:
    return ctx.job_id, ctx.epoch
