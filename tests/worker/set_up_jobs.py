"""The module of an application that sets up its child processes. It writes each of its steps to a ledger, as one line."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import anyio

from taskflow import JobContext, JobStopping, configure, current_job, job

LEDGER = os.environ.get("SET_UP_LEDGER", "")
HOW = os.environ.get("SET_UP_HOW", "")


def note(*words: object) -> None:
    with open(LEDGER, "a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def initialize() -> None:
    note("initialized", os.getpid(), threading.current_thread() is threading.main_thread())
    match HOW:
        case "fails":
            raise LookupError("no model")
        case "exits":
            os._exit(3)


@contextmanager
def plain() -> Iterator[str]:
    note("entered", os.getpid())
    yield "a model"
    if HOW == "takes its time at its end":
        time.sleep(0.5)
    note("left", os.getpid())
    match HOW:
        case "fails at its end":
            raise LookupError("nothing to close")
        case "hangs at its end":
            time.sleep(60)


@asynccontextmanager
async def a_client() -> AsyncIterator[asyncio.AbstractEventLoop]:
    """Hold a task group, which must be left in the task that has entered it."""
    note("entered", os.getpid())
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        yield asyncio.get_running_loop()
        group.cancel_scope.cancel()
    await asyncio.sleep(0.01)
    note("left", os.getpid())


def lifespan() -> AbstractContextManager[Any] | AbstractAsyncContextManager[Any]:
    match HOW:
        case "async":
            return a_client()
        case "fails to enter":
            raise LookupError("no lifespan")
        case "is none":
            return None  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
    return plain()


if LEDGER and HOW != "not configured":  # in a child process
    configure(child_initializer=initialize, child_lifespan=lifespan)


@job(runs_in="process", max_attempts=1)
def reads_state(ctx: JobContext) -> str:
    assert current_job().state == ctx.state
    note("run", os.getpid())
    return str(ctx.state)


@job(runs_in="process", max_attempts=1)
async def is_in_its_loop(ctx: JobContext) -> bool:
    return ctx.state is asyncio.get_running_loop()


@job(runs_in="process", max_attempts=1)
async def cancels_everything() -> None:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


@job(runs_in="process", max_attempts=1, stop_grace=10)
def works() -> None:
    note("works", os.getpid())
    try:
        time.sleep(60)
    except JobStopping:
        note("stopped")
        raise
