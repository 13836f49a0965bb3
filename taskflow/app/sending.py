"""Sends one call or many through the middleware to the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

from taskflow.app.app import App, default_app
from taskflow.app.call import Call
from taskflow.app.enqueue_batches import Batch, Batches, Sent, async_batches
from taskflow.app.handle import JobHandle
from taskflow.app.middleware import EnqueueCall, Middleware, enqueue_chain
from taskflow.app.portal import refuse_inside_a_loop, run_sync
from taskflow.broker.protocol import Added, Refused
from taskflow.model.errors import EnqueueFailed, KeyConflict, TaskflowError
from taskflow.model.job_schema import check_headers

R = TypeVar("R")


async def send(app: App, call: Call[R]) -> JobHandle[R]:
    """Send one call. Calls sent at the same time share a round trip."""
    if app.importing_module is not None:
        app.warn_of_sending(call.job.name)
    to_store = app.client().send
    has_middleware = app.settings.middleware and _has_enqueue_middleware(app)
    answer = await (_through_middleware(app, call, to_store) if has_middleware else to_store(call.envelope))
    handle = _handle(app, call, answer)
    if call.raises_on_conflict and _is_conflict(call, answer):
        raise _conflict(call, handle.id)
    return handle


async def enqueue(calls: Iterable[Call[R]] | AsyncIterable[Call[R]]) -> list[JobHandle[R]]:
    """Send many calls, and return their handles in the same order: ``enqueue(add.bind(n, n) for n in range(10_000))``.

    `calls` is an iterable or async iterable of calls made by `bind`. It is read and sent in batches of at most 1,000 calls or 1 MiB. Unless
    middleware wraps the sending, each batch is added as a whole or not at all.

    Raises EnqueueFailed, with the handles of the calls sent so far, if some calls were not sent or if the iterable raises. Calls that it
    yielded before raising are still sent. Raises TypeError if `calls` is not iterable.
    """
    app = default_app()
    sent = Sent[R]()
    if isinstance(calls, AsyncIterable):
        async with aclosing(async_batches(calls)) as batches:
            async for batch in batches:
                await _send_batch(app, batch, sent)
    else:
        in_step = Batches(calls)
        for batch in in_step:
            await _send_before(app, in_step, batch, sent)
    return sent.handles


def enqueue_sync(calls: Iterable[Call[R]]) -> list[JobHandle[R]]:
    """Like `enqueue`, but for code without an event loop and for plain iterables only. `calls` is read in the
    calling thread. Raises RuntimeError inside a running loop."""
    refuse_inside_a_loop("enqueue_sync()", "await enqueue()")
    app, sent = default_app(), Sent[R]()
    for batch in Batches(calls):
        run_sync(_send_batch(app, batch, sent))
    return sent.handles


async def _send_before(app: App, rest: Batches[R], batch: Batch[R], sent: Sent[R]) -> None:
    """Send the batch, and read the next one in the meantime: building a batch in Python takes about as long as adding one to a store."""
    if rest.has_ended:
        return await _send_batch(app, batch, sent)
    sending = asyncio.create_task(_send_batch(app, batch, sent))
    try:
        await asyncio.sleep(0)  # lets the task start
        rest.gather_ahead()
        return await sending
    finally:
        if not sending.done():
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def _send_batch(app: App, batch: Batch[R], sent: Sent[R]) -> None:
    """Send the batch and add its handles to `sent`. If some calls were not sent, raises EnqueueFailed with the handles collected so far."""
    if app.importing_module is not None and batch.calls:
        app.warn_of_sending(batch.calls[0].job.name)
    answers = await _answers(app, batch.calls)
    errors = [answer for answer in (*answers, batch.error) if isinstance(answer, BaseException)]
    for call, answer in zip(batch.calls, answers, strict=True):
        if not isinstance(answer, BaseException):
            sent.handles.append(_handle(app, call, answer))
            if _is_conflict(call, answer):
                sent.conflicts.append(sent.handles[-1])
    if errors:
        raise _failed(sent, f"{type(errors[0]).__name__}: {errors[0]}") from errors[0]
    if sent.conflicts:
        raise _failed(sent, f"{len(sent.conflicts)} call(s) found a live job with their key, for example {sent.conflicts[0]!r}")


async def _answers(app: App, calls: list[Call[Any]]) -> list[Added | Refused | BaseException]:
    """Return an answer or an error for each call. If middleware fails for one call,
    the others are not affected; if the broker fails, all are."""
    client = app.client()
    if not calls:
        return []
    if _has_enqueue_middleware(app):
        return await asyncio.gather(*(_through_middleware(app, call, client.send) for call in calls), return_exceptions=True)
    try:
        return [*await client.enqueue([call.envelope for call in calls])]
    except TaskflowError as error:
        return [error] * len(calls)


def _has_enqueue_middleware(app: App) -> bool:
    return any(type(layer).enqueue is not Middleware.enqueue for layer in app.settings.middleware)


async def _through_middleware(app: App, call: Call[Any], send: Any) -> Added | Refused:
    answers: list[Added | Refused] = []

    async def innermost(enqueue_call: EnqueueCall) -> None:
        enqueue_call.headers = check_headers(enqueue_call.headers)
        answers.append(await send(enqueue_call.to_envelope()))

    await enqueue_chain(app.settings.middleware, innermost)(EnqueueCall(call.envelope))
    if not answers:
        raise TaskflowError(f"{call!r} was not sent: a middleware's enqueue() did not await call_next(call)")
    return answers[-1]


def _handle(app: App, call: Call[R], answer: Added | Refused) -> JobHandle[R]:
    if isinstance(answer, Added) or answer.standing == answer.id:
        return JobHandle(app, answer.id, call.job)
    return JobHandle(app, answer.standing, call.job, is_new=False)


def _is_conflict(call: Call[Any], answer: Added | Refused) -> bool:
    return call.raises_on_conflict and isinstance(answer, Refused) and answer.because == "key"


def _conflict(call: Call[Any], standing: str) -> KeyConflict:
    return KeyConflict(
        f"{call!r} was not sent: the live job {standing} has its key {call.key!r}; "
        'on_conflict="keep" returns the handle of that job, "replace" cancels it',
        job_id=standing,
    )


def _failed(sent: Sent[Any], why: str) -> EnqueueFailed:
    message = f"not all calls were sent: {why}; {len(sent.handles)} call(s) were sent, and .handles has their handles in order"
    return EnqueueFailed(message, handles=sent.handles, conflicts=sent.conflicts)
