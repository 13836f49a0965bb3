"""Sends one call or many through the middleware to the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from taskflow.app.app import App, default_app
from taskflow.app.enqueue_batches import Batch, Batches, Sent, async_batches
from taskflow.app.handle import JobHandle
from taskflow.app.job_type import Call
from taskflow.app.portal import refuse_inside_a_loop, run_sync
from taskflow.app.send_results import add_results, handle_of, has_enqueue_middleware, through_middleware
from taskflow.app.stamping import stamp_batch, stamped
from taskflow.broker.protocol import Added, Refused
from taskflow.model.errors import TaskflowError

if TYPE_CHECKING:  # loaded only by senders that use them
    from taskflow.app.connections.types import Connection

R = TypeVar("R")


async def send_call(app: App, call: Call[R]) -> JobHandle[R]:
    """Send one call. Calls sent at the same time share a round trip."""
    return await _send(app, stamped(app, call) if app.settings.middleware else call)


def send_call_sync(app: App, call: Call[R]) -> JobHandle[R]:
    """Like `send_call`, for code without an event loop."""
    app.broker()  # imported here and not in the portal's thread: see `url.load`
    return run_sync(_send(app, stamped(app, call)))


async def _send(app: App, call: Call[R]) -> JobHandle[R]:
    if app.importing_module is not None:
        app.warn_of_sending(call.job)
    to_store = app.client().send
    has_middleware = app.settings.middleware and has_enqueue_middleware(app)
    answer = await (through_middleware(app, call, to_store) if has_middleware else to_store(call.envelope))
    handle = handle_of(app, call, answer)
    if app.run_inline is not None:
        await app.run_inline([answer])
    return handle


async def enqueue(calls: Iterable[Call[R]] | AsyncIterable[Call[R]], *, connection: Connection | None = None) -> list[JobHandle[R]]:
    """Send many calls, and return their handles in the same order: ``enqueue(add.bind(n, n) for n in range(10_000))``.

    `calls` is an iterable or async iterable of calls made by `bind`. It is read and sent in batches of at most 1,000 calls or 1 MiB. Unless
    middleware wraps the sending, each batch is added as a whole or not at all. With a `connection`, as in `EnqueueOptions`, all of them are
    added if and only if its transaction commits.

    Raises EnqueueFailed, with the handles of the calls sent so far, if some calls were not sent, or if the iterable or middleware raises.
    Calls that the iterable yielded before raising are still sent. Raises TypeError if `calls` is not iterable.
    """
    app = default_app()
    if connection is not None:
        from taskflow.app import transactional_sending

        return await transactional_sending.enqueue(app, calls, connection)
    sent = Sent[R]()
    if isinstance(calls, AsyncIterable):
        async with aclosing(async_batches(calls)) as batches:
            async for batch in batches:
                stamp_batch(app, batch, sent)
                await _send_batch(app, batch, sent)
    else:
        in_step = Batches(calls)
        for batch in in_step:
            stamp_batch(app, batch, sent)
            await _send_before(app, in_step, batch, sent)
    return sent.handles


def enqueue_sync(calls: Iterable[Call[R]], *, connection: Connection | None = None) -> list[JobHandle[R]]:
    """Like `enqueue`, but for code without an event loop and for plain iterables only. `calls` is read in the
    calling thread, where the `connection` is used too. Raises RuntimeError inside a running loop, unless a
    synchronous `connection` is given."""
    if connection is not None:
        from taskflow.app import transactional_sending

        return transactional_sending.enqueue_sync(default_app(), calls, connection)
    refuse_inside_a_loop("enqueue_sync()", "await enqueue()")
    app, sent = default_app(), Sent[R]()
    app.broker()  # as in `send_call_sync`
    for batch in Batches(calls):
        stamp_batch(app, batch, sent)
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
    """Send the batch and add its handles to `sent`."""
    if app.importing_module is not None and batch.calls:
        app.warn_of_sending(batch.calls[0].job)
    answers = await _answers(app, batch.calls)
    if app.run_inline is not None:
        await app.run_inline(answers)
    add_results(app, batch, answers, sent)


async def _answers(app: App, calls: list[Call[Any]]) -> list[Added | Refused | BaseException]:
    """Return an answer or an error for each call. If middleware fails for one call,
    the others are not affected; if the broker fails, all are."""
    client = app.client()
    if not calls:
        return []
    if has_enqueue_middleware(app):
        return await asyncio.gather(*(through_middleware(app, call, client.send) for call in calls), return_exceptions=True)
    try:
        return [*await client.enqueue([call.envelope for call in calls])]
    except TaskflowError as error:
        return [error] * len(calls)
