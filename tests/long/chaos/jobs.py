"""The jobs of a chaos test. Each run writes its beginning and its end into the ledger. Workers import this module, the test does not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from taskflow import Backoff, Every, JobContext, Snooze, configure, job
from taskflow.events import Event, InterpreterBlocked, LoopResumed, ServiceFailed, VerdictIgnored
from tests.long.chaos import ledger as ledgers, tables
from tests.long.chaos.state import EVERY, KEYED

ledger: Final = ledgers.of_environment()

KEPT: Final = 7_200.0

Result = list[int]
"""The number that was sent, and the epoch of the run that ended the job."""


class Deliberate(Exception):
    """The failure of an attempt that should fail."""


def note(event: Event) -> None:
    match event:
        case VerdictIgnored(lease):
            ledger.write("ignored", id=event.job_id or "", epoch=lease.epoch)
        case InterpreterBlocked() | LoopResumed():
            ledger.write("starved", after=event.seconds, note=type(event).__name__)
        case ServiceFailed(service, error):
            ledger.write("service failed", note=f"{service}: {type(error).__name__}: {error}"[:500])


configure(defaults={"keep_result": KEPT}, subscribers=[note])


@contextmanager
def run(ctx: JobContext) -> Iterator[None]:
    """Write when the run begins, and how and when it ends."""
    scheduled = "" if ctx.scheduled_for is None else str(ctx.scheduled_for.timestamp())
    fence: dict[str, Any] = {"id": ctx.job_id, "kind": ctx.job_name, "epoch": ctx.epoch, "attempt": ctx.attempt}
    ledger.write("begin", **fence, note=scheduled or ctx.caused_by or "")
    status = "broken"
    try:
        yield
        status = "ok"
    except Deliberate:
        status = "failed"
        raise
    except Snooze:
        status = "snoozed"
        raise
    except asyncio.CancelledError:
        status = "stopped"
        raise
    except Exception as error:
        status = f"broken: {type(error).__name__}"
        raise
    finally:
        ledger.write("end", **fence, status=status)


@job(name="chaos.plain")
async def plain(ctx: JobContext, number: int, seconds: float) -> Result:
    with run(ctx):
        await asyncio.sleep(seconds)
    return [number, ctx.epoch]


@job(name=KEYED)
async def keyed(ctx: JobContext, number: int, seconds: float) -> Result:
    with run(ctx):
        await asyncio.sleep(seconds)
    return [number, ctx.epoch]


@job(name="chaos.threaded")
def threaded(ctx: JobContext, number: int, seconds: float) -> Result:
    with run(ctx):
        ctx.cancelled.wait(seconds)
    return [number, ctx.epoch]


@job(name="chaos.mourning")
async def mourning(ctx: JobContext, number: int) -> Result:
    """Sent when a job has failed."""
    with run(ctx):
        return [number, ctx.epoch]


@job(name="chaos.retried", retry=Backoff(base=0.1, max=0.5))
async def retried(ctx: JobContext, number: int, fails: int) -> Result:
    with run(ctx):
        await asyncio.sleep(random.uniform(0, 0.05))
        if ctx.attempt <= fails:
            raise Deliberate(f"attempt {ctx.attempt} of {number}")
    return [number, ctx.epoch]


@job(name="chaos.snoozed")
async def snoozed(ctx: JobContext, number: int, seconds: float) -> Result:
    """Snooze until it is `seconds` old."""
    with run(ctx):
        if ledger.wall() - ctx.created_at.timestamp() < seconds:
            raise Snooze(after=seconds / 2)
    return [number, ctx.epoch]


@job(name="chaos.completed", retry=Backoff(base=0.1, max=0.5), max_attempts=1_000)
def completed(ctx: JobContext, number: int) -> Result:
    """Apply its effect and its success in one transaction."""
    with run(ctx):
        own = tables.of_environment()
        with own.transaction() as connection:
            own.add_effect(connection, ctx.job_id, ctx.epoch)
            ctx.complete_in(connection, result=[number, ctx.epoch])
            if random.random() < 0.1:
                raise Deliberate(f"{number} fails before its commit")
    return []


@job(name="chaos.tick", schedule=Every(EVERY, name="chaos.declared"), catch_up="all")
async def tick(ctx: JobContext) -> Result:
    with run(ctx):
        return [0, ctx.epoch]
