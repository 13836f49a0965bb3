"""Sends calls in batches, through the middleware, to the store or in a caller's transaction, and makes handles of the store's answers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import aclosing, nullcontext
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from taskflow.app.app import App, default_app
from taskflow.app.handle import JobHandle, Origin
from taskflow.app.job_type import Call
from taskflow.app.loop_client import MAX_BYTES, MAX_ITEMS
from taskflow.app.middleware import EnqueueCall, Middleware, enqueue_chain, stamp, stamping
from taskflow.app.portal import CallersThread, block_on, refuse_inside_a_loop, run_sync
from taskflow.broker.protocol import Added, Refused
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerError, ConfigurationError, EnqueueFailed, KeyConflict, TaskflowError, WrongConnection

if TYPE_CHECKING:
    from taskflow.app.connections import Connection


R = TypeVar("R")


class Batch(Generic[R]):
    """At most 1,000 calls and 1 MiB, or one larger call, and the exception that the iterable raised after these calls, or None."""

    def __init__(self) -> None:
        self.calls: list[Call[R]] = []
        self.error: Exception | None = None
        self._size = 0

    def add(self, call: Call[R]) -> bool:
        """Add the call, or return False if the batch is full. Raises TypeError for anything that is not a call."""
        if not isinstance(call, Call):
            raise TypeError(f"enqueue() got {call!r}: expected calls made by .bind(...)")
        size = self._size + len(call.envelope.payload)
        if self.calls and (size > MAX_BYTES or len(self.calls) >= MAX_ITEMS):
            return False
        self.calls.append(call)
        self._size = size
        return True

    @property
    def is_worth_sending(self) -> bool:
        return bool(self.calls) or self.error is not None


class Sent(Generic[R]):
    """The handles that one `enqueue()` has collected so far, and those of live jobs that already had a call's key."""

    def __init__(self) -> None:
        self.handles: list[JobHandle[R]] = []
        self.conflicts: list[JobHandle[R]] = []

    def not_all(self, why: str) -> EnqueueFailed:
        message = f"not all calls were sent: {why}; {len(self.handles)} call(s) were sent, and .handles has their handles in order"
        return EnqueueFailed(message, handles=self.handles, conflicts=self.conflicts)


READ_AHEAD_TIMEOUT: Final = 0.05
"""Seconds to spend on reading calls for the next batch while the current one is being sent. The rest is read after the store's answer."""


class Batches(Generic[R]):
    """Splits an iterable of calls, which may be endless, into batches. If it raises, the last batch has the error."""

    def __init__(self, calls: Iterable[Call[R]]) -> None:
        given: object = calls
        if not isinstance(given, Iterable):
            hint = "[...] around a single one, or .delay(...)" if isinstance(given, Call) else "job.bind(...) for each call"
            raise TypeError(f"enqueue() got {given!r}: expected an iterable of calls; write {hint}")
        self._calls = iter(calls)
        self._batch = Batch[R]()
        self._next_call: Call[R] | None = None
        self._has_ended = False

    def __iter__(self) -> Iterator[Batch[R]]:
        return self

    def __next__(self) -> Batch[R]:
        self.gather(math.inf)
        batch = self._batch
        if not batch.is_worth_sending:
            raise StopIteration
        self._batch = Batch()
        if self._next_call is not None:
            self._batch.add(self._next_call)
            self._next_call = None
        return batch

    @property
    def has_ended(self) -> bool:
        return self._has_ended and not self._batch.is_worth_sending

    def gather(self, until: float) -> None:
        try:
            while self._next_call is None and not self._has_ended and time.monotonic() < until:
                call = next(self._calls)
                if not self._batch.add(call):
                    self._next_call = call
        except StopIteration:
            self._has_ended = True
        except Exception as error:
            self._has_ended = True
            self._batch.error = error


async def async_batches(calls: AsyncIterable[Call[R]]) -> AsyncGenerator[Batch[R], None]:
    """Yield the calls in batches, and close an async generator, because no other code can."""
    batch = Batch[R]()
    async with aclosing(calls) if isinstance(calls, AsyncGenerator) else nullcontext():
        try:
            async for call in calls:
                if not batch.add(call):
                    yield batch
                    batch = Batch()
                    batch.add(call)
        except Exception as error:
            batch.error = error
        if batch.is_worth_sending:
            yield batch


T = TypeVar("T")

_Answers = list[Added | Refused | BaseException]
_SendOne = Callable[[Envelope], Awaitable[Added | Refused]]
_Enqueue = Callable[[Sequence[Envelope]], Awaitable[list[Added | Refused]]]


async def send_call(app: App, call: Call[R], connection: object = None) -> JobHandle[R]:
    """Send one call. Calls sent at the same time share a round trip. With a connection, the call is sent in its transaction."""
    if app.settings.middleware:
        [call] = _stamped(app, [call])
    if connection is not None:
        return await _send(app, call, _one_by(_enqueue_on(app, connection)), Origin.TRANSACTION)
    return await _send(app, call)


def send_call_sync(app: App, call: Call[R], connection: object = None) -> JobHandle[R]:
    """Like `send_call`, for code without an event loop."""
    [call] = _stamped(app, [call])
    if connection is not None:
        return _in_this_thread(app, connection, lambda enqueue: _send(app, call, _one_by(enqueue), Origin.TRANSACTION))
    app.broker()  # imported here and not in the portal's thread: see `url.load`
    return run_sync(_send(app, call))


async def _send(app: App, call: Call[R], to_store: _SendOne | None = None, origin: Origin = Origin.SENT) -> JobHandle[R]:
    if app.importing_module is not None:
        app.warn_of_sending(call.job)
    to_store = to_store or app.client().send
    has_middleware = app.settings.middleware and _has_enqueue_middleware(app)
    answer = await (_through_middleware(app, call, to_store) if has_middleware else to_store(call.envelope))
    checked = _clash_or(answer, call)
    if isinstance(checked, BaseException):
        raise checked
    handle = _handle(app, call, checked, origin)
    if _is_conflict(call, answer):
        raise KeyConflict(
            f"{call!r} was not sent: the live job {handle.id} has its key {call.key!r}; "
            'on_conflict="keep" returns the handle of that job, "replace" cancels it',
            job_id=handle.id,
        )
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
    app, sent = default_app(), Sent[R]()
    enqueue_there = None if connection is None else _enqueue_on(app, connection)
    if isinstance(calls, AsyncIterable):
        async with aclosing(async_batches(calls)) as batches:
            async for batch in batches:
                _stamp_batch(app, batch, sent)
                await _send_batch(app, batch, sent, enqueue_there)
    else:
        in_step = Batches(calls)
        for batch in in_step:
            _stamp_batch(app, batch, sent)
            if connection is not None or in_step.has_ended:
                await _send_batch(app, batch, sent, enqueue_there)
            else:
                await _send_before(app, in_step, batch, sent)
    return sent.handles


def enqueue_sync(calls: Iterable[Call[R]], *, connection: Connection | None = None) -> list[JobHandle[R]]:
    """Like `enqueue`, but for code without an event loop and for plain iterables only. `calls` is read in the
    calling thread, where the `connection` is used too. Raises RuntimeError inside a running loop, unless a
    synchronous `connection` is given."""
    app, sent = default_app(), Sent[R]()
    if connection is None:
        refuse_inside_a_loop("enqueue_sync()", "await enqueue()")
        app.broker()  # as in `send_call_sync`
    for batch in Batches(calls):
        _stamp_batch(app, batch, sent)
        if connection is None:
            run_sync(_send_batch(app, batch, sent))
        else:
            _in_this_thread(app, connection, lambda enqueue, batch=batch: _send_batch(app, batch, sent, enqueue))  # type: ignore[misc]
    return sent.handles


async def _send_before(app: App, rest: Batches[R], batch: Batch[R], sent: Sent[R]) -> None:
    """Send the batch, and read the next one in the meantime, which takes about as long as adding one to a store."""
    sending = asyncio.create_task(_send_batch(app, batch, sent))
    try:
        await asyncio.sleep(0)  # lets the task start
        rest.gather(time.monotonic() + READ_AHEAD_TIMEOUT)
        return await sending
    finally:
        if not sending.done():
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def _send_batch(app: App, batch: Batch[R], sent: Sent[R], enqueue_there: _Enqueue | None = None) -> None:
    """Send the batch and add its handles to `sent`. Raises EnqueueFailed if some calls were not sent."""
    if app.importing_module is not None and batch.calls:
        app.warn_of_sending(batch.calls[0].job)
    answers = await _answers(app, batch.calls, enqueue_there)
    if app.run_inline is not None:
        await app.run_inline(answers)
    answers = [_clash_or(answer, call) for call, answer in zip(batch.calls, answers, strict=True)]
    origin = Origin.SENT if enqueue_there is None else Origin.TRANSACTION
    for call, answer in zip(batch.calls, answers, strict=True):
        if not isinstance(answer, BaseException):
            sent.handles.append(_handle(app, call, answer, origin))
            if _is_conflict(call, answer):
                sent.conflicts.append(sent.handles[-1])
    for error in (*answers, batch.error):
        if isinstance(error, BaseException):
            raise sent.not_all(f"{type(error).__name__}: {error}") from error
    if sent.conflicts:
        raise sent.not_all(f"{len(sent.conflicts)} call(s) found a live job with their key, for example {sent.conflicts[0]!r}")


async def _answers(app: App, calls: list[Call[Any]], enqueue_there: _Enqueue | None) -> _Answers:
    """Return an answer or an error for each call. The calls share one call to the store, or one statement, unless middleware wraps each:
    then one that fails does not affect the others."""
    if not _has_enqueue_middleware(app):
        enqueue_all = app.client().enqueue if enqueue_there is None else enqueue_there
        try:
            return [*await enqueue_all([call.envelope for call in calls])] if calls else []
        except TaskflowError as error:
            if enqueue_there is not None and not isinstance(error, BrokerError):
                raise
            return [error] * len(calls)
    if enqueue_there is None:
        send = app.client().send
        return await asyncio.gather(*(_through_middleware(app, call, send) for call in calls), return_exceptions=True)
    answers, send_one = _Answers(), _one_by(enqueue_there)
    for call in calls:  # one after another, because they share a connection
        try:
            answers.append(await _through_middleware(app, call, send_one))
        except (WrongConnection, ConfigurationError):
            raise
        except TaskflowError as error:
            answers.append(error)
    return answers


# --- stamps and middleware ----------------------------------------------------------------------------------------


def _stamp_batch(app: App, batch: Batch[R], sent: Sent[R]) -> None:
    """Let middleware stamp the calls of a batch, in this thread. Raises EnqueueFailed if middleware raises."""
    try:
        batch.calls = _stamped(app, batch.calls)
    except Exception as error:
        raise sent.not_all(f"{type(error).__name__}: {error}") from error


def _stamped(app: App, calls: list[Call[R]]) -> list[Call[R]]:
    layers = stamping(app.settings.middleware)
    if not layers:
        return calls
    envelopes = stamp(layers, [EnqueueCall(call.envelope, call.job_type, call.given) for call in calls])
    return [call if envelope is call.envelope else call.stamped(envelope) for call, envelope in zip(calls, envelopes, strict=True)]


def _has_enqueue_middleware(app: App) -> bool:
    return any(type(layer).enqueue is not Middleware.enqueue for layer in app.settings.middleware)


async def _through_middleware(app: App, call: Call[Any], send: _SendOne) -> Added | Refused:
    answers: list[Added | Refused] = []

    async def innermost(enqueue_call: EnqueueCall) -> None:
        answers.append(await send(enqueue_call.to_envelope()))

    await enqueue_chain(app.settings.middleware, innermost)(EnqueueCall(call.envelope, call.job_type, call.given))
    if not answers:
        raise TaskflowError(f"{call!r} was not sent: a middleware's enqueue() did not await call_next(call)")
    return answers[-1]


# --- the store's answers ------------------------------------------------------------------------------------------


def _clash_or(answer: Added | Refused | BaseException, call: Call[Any]) -> Added | Refused | BaseException:
    """Return an error if another job has the call's id, else the answer."""
    if isinstance(answer, Refused) and answer.because == "clash":
        return TaskflowError(f"{call!r} was not sent: the store has another job with its id; make the call again, which gives it a new id")
    return answer


def _handle(app: App, call: Call[R], answer: Added | Refused, origin: Origin) -> JobHandle[R]:
    if isinstance(answer, Added) or answer.standing == answer.id:
        return JobHandle(app, answer.id, call.job_type, origin=origin)
    return JobHandle(app, answer.standing, call.job_type, is_new=False, origin=origin)


def _is_conflict(call: Call[Any], answer: Added | Refused) -> bool:
    return call.raises_on_conflict and isinstance(answer, Refused) and answer.because == "key"


# --- in a caller's transaction ------------------------------------------------------------------------------------


def _enqueue_on(app: App, connection: object) -> _Enqueue:
    from taskflow.app.connections.run_in_transaction import run_in_transaction

    async def enqueue_there(envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        if app.ignores_connections:
            return await app.client().enqueue(envelopes)
        return await run_in_transaction(app, connection, "enqueue", lambda store: store.enqueue(envelopes))

    return enqueue_there


def _one_by(enqueue_there: _Enqueue) -> _SendOne:
    async def send_one(envelope: Envelope) -> Added | Refused:
        [answer] = await enqueue_there([envelope])
        return answer

    return send_one


def _in_this_thread(app: App, connection: object, send_by: Callable[[_Enqueue], Coroutine[Any, Any, T]]) -> T:
    """Send with statements that run in this thread, where the connection belongs. Middleware runs in the portal's event loop."""
    from taskflow.app.connections.adapters import is_awaited
    from taskflow.app.connections.run_in_transaction import run_in_transaction_sync

    if is_awaited(connection):
        raise TypeError(f"a {type(connection).__name__} is used with `await`, so send with `await .delay()` or `await enqueue()`")
    if app.ignores_connections:
        return block_on(send_by(_enqueue_on(app, connection)))
    thread = CallersThread()

    has_middleware = _has_enqueue_middleware(app)

    async def add(envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        def here() -> list[Added | Refused]:
            return run_in_transaction_sync(app, connection, "enqueue", lambda store: store.enqueue(envelopes))

        return await thread.submit(here) if has_middleware else here()

    sending = send_by(add)
    if has_middleware:
        return thread.serve(sending)
    try:
        sending.send(None)  # it awaits nothing which is not done
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError(f"{sending!r} waits for something")
