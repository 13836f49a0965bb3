"""Jobs that many tests send."""

from __future__ import annotations

from taskflow import JobContext, Snooze, current_job, job


@job
async def add(x: int, y: int = 1) -> int:
    return x + y


@job
async def nothing() -> None:
    return None


@job
async def total(numbers: list[int], *more: int, scale: int = 1, **rest: int) -> int:
    return scale * (sum(numbers) + sum(more) + sum(rest.values()))


@job(max_attempts=3)
async def fail(word: str) -> int:
    raise ValueError(word)


@job
async def snooze() -> None:
    raise Snooze(after=60)


@job
async def about_itself(ctx: JobContext, word: str) -> list[str | int]:
    return [ctx.job_id, ctx.job_name, ctx.queue, ctx.attempt, ctx.max_attempts, ctx.epoch, word]


@job
async def blob(data: bytes) -> int:
    return len(data)


@job(tags=("billing", "eu"))
async def invoice() -> tuple[str, ...]:
    return current_job().tags
