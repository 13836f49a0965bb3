"""Sends calls in a caller's transaction."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from taskflow.app.app import App
from taskflow.app.connections.recognition import is_awaited
from taskflow.app.connections.run_in_transaction import run_in_transaction, run_in_transaction_sync
from taskflow.app.enqueue_batches import Batch, Batches, Sent, async_batches
from taskflow.app.handle import JobHandle, Origin
from taskflow.app.job_type import Call
from taskflow.app.portal import CallersThread, block_on
from taskflow.app.send_results import add_results, handle_of, has_enqueue_middleware, through_middleware
from taskflow.app.stamping import stamp_batch, stamped
from taskflow.broker.protocol import Added, Refused
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerError, ConfigurationError, TaskflowError, WrongConnection

R = TypeVar("R")
T = TypeVar("T")

_Answers = list[Added | Refused]
_Enqueue = Callable[[Sequence[Envelope]], Awaitable[_Answers]]


async def send(app: App, call: Call[R], connection: object) -> JobHandle[R]:
    """Send one call on the connection."""
    return await _send(app, stamped(app, call), _enqueue_on(app, connection))


def send_sync(app: App, call: Call[R], connection: object) -> JobHandle[R]:
    """Like `send`, for code without an event loop."""
    return _in_this_thread(app, connection, partial(_send, app, stamped(app, call)))


async def enqueue(app: App, calls: Iterable[Call[R]] | AsyncIterable[Call[R]], connection: object) -> list[JobHandle[R]]:
    """Send many calls on the connection, in batches. If one is not sent, those after it are not sent either."""
    sent, add = Sent[R](), _enqueue_on(app, connection)
    if isinstance(calls, AsyncIterable):
        async with aclosing(async_batches(calls)) as batches:
            async for batch in batches:
                stamp_batch(app, batch, sent)
                await _send_batch(app, batch, sent, add)
    else:
        for batch in Batches(calls):
            stamp_batch(app, batch, sent)
            await _send_batch(app, batch, sent, add)
    return sent.handles


def enqueue_sync(app: App, calls: Iterable[Call[R]], connection: object) -> list[JobHandle[R]]:
    """Like `enqueue`, for code without an event loop."""
    sent = Sent[R]()
    for batch in Batches(calls):
        stamp_batch(app, batch, sent)
        _in_this_thread(app, connection, partial(_send_batch, app, batch, sent))
    return sent.handles


def _enqueue_on(app: App, connection: object) -> _Enqueue:
    async def enqueue_there(envelopes: Sequence[Envelope]) -> _Answers:
        if app.ignores_connections:
            return await app.client().enqueue(envelopes)
        return await run_in_transaction(app, connection, "enqueue", lambda store: store.enqueue(envelopes))

    return enqueue_there


def _in_this_thread(app: App, connection: object, send_by: Callable[[_Enqueue], Coroutine[Any, Any, T]]) -> T:
    """Send with statements that run in this thread, where the connection belongs. Middleware runs in the portal's event loop."""
    if is_awaited(connection):
        raise TypeError(f"a {type(connection).__name__} is used with `await`, so send with `await .delay()` or `await enqueue()`")
    if app.ignores_connections:
        return block_on(send_by(_enqueue_on(app, connection)))
    thread = CallersThread()

    def add(envelopes: Sequence[Envelope]) -> _Answers:
        return run_in_transaction_sync(app, connection, "enqueue", lambda store: store.enqueue(envelopes))

    async def add_here(envelopes: Sequence[Envelope]) -> _Answers:
        return add(envelopes)

    async def add_from_portal(envelopes: Sequence[Envelope]) -> _Answers:
        return await thread.call(lambda: add(envelopes))

    return thread.serve(send_by(add_from_portal)) if has_enqueue_middleware(app) else _result_of(send_by(add_here))


def _result_of(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that awaits nothing which is not done."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise AssertionError(f"{coroutine!r} waits for something")


async def _send(app: App, call: Call[R], enqueue_there: _Enqueue) -> JobHandle[R]:
    [answer] = await _answers(app, [call], enqueue_there)
    if isinstance(answer, BaseException):
        raise answer
    if app.run_inline is not None:
        await app.run_inline([answer])
    return handle_of(app, call, answer, Origin.TRANSACTION)


async def _send_batch(app: App, batch: Batch[R], sent: Sent[R], enqueue_there: _Enqueue) -> None:
    answers = await _answers(app, batch.calls, enqueue_there)
    if app.run_inline is not None:
        await app.run_inline(answers)
    add_results(app, batch, answers, sent, Origin.TRANSACTION)


async def _answers(app: App, calls: list[Call[Any]], enqueue_there: _Enqueue) -> list[Added | Refused | BaseException]:
    """Return an answer for each call, or an error for those that were not sent. The calls of a
    batch share one statement, unless middleware wraps each of them."""
    if app.importing_module is not None and calls:
        app.warn_of_sending(calls[0].job)
    if not has_enqueue_middleware(app):
        try:
            return [*await enqueue_there([call.envelope for call in calls])] if calls else []
        except BrokerError as error:
            return [error] * len(calls)

    async def send_one(envelope: Envelope) -> Added | Refused:
        [answer] = await enqueue_there([envelope])
        return answer

    answers = list[Added | Refused | BaseException]()
    for call in calls:  # one after another, because they share a connection
        try:
            answers.append(await through_middleware(app, call, send_one))
        except (WrongConnection, ConfigurationError):
            raise
        except TaskflowError as error:
            answers.append(error)
    return answers
