"""Sends calls through the middleware to the store, in batches or in a caller's transaction, and makes handles from the store's answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import aclosing, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from taskflow.app.app import App, default_app
from taskflow.app.handle import JobHandle, Origin
from taskflow.app.job_type import BareCall
from taskflow.app.loop_client import MAX_BYTES, MAX_ITEMS
from taskflow.app.middleware import EnqueueCall, Middleware, enqueue_chain, stamp, stamping
from taskflow.app.portal import CallersThread, block_on, refuse_inside_a_loop, run_sync
from taskflow.broker.protocol import Added, Refused
from taskflow.model.envelope import Envelope, OnConflict
from taskflow.model.errors import BrokerError, ConfigurationError, EnqueueFailed, KeyConflict, TaskflowError, WrongConnection
from taskflow.model.ids import parse_id

if TYPE_CHECKING:
    from taskflow.app.connections import Connection


R = TypeVar("R")
T = TypeVar("T")


async def send_call(app: App, call: BareCall[R], connection: object = None) -> JobHandle[R]:
    """Send one call. Calls sent at the same time share a round trip. With a connection, the job is added in its transaction."""
    if app.settings.middleware:
        [call] = _stamped(app, [call])
    return await _send(app, call, None if connection is None else _within(app, connection))


def send_call_sync(app: App, call: BareCall[R], connection: object = None) -> JobHandle[R]:
    """Like `send_call`, for code without an event loop."""
    [call] = _stamped(app, [call])
    if connection is not None:
        return _in_this_thread(app, connection, partial(_send, app, call))
    app.broker()  # imports the driver here, and not in the portal's thread: see `url.load`
    return run_sync(_send(app, call))


async def enqueue(calls: Iterable[BareCall[R]] | AsyncIterable[BareCall[R]], *, connection: Connection | None = None) -> list[JobHandle[R]]:
    """Send many calls, and return their handles in the same order: ``enqueue(add.bind(n, n) for n in range(10_000))``.

    `calls` is an iterable or async iterable of calls made by `bind`. It is read and sent in batches of at most 1,000 calls or 1 MiB. Unless
    middleware wraps the sending, each batch is added as a whole or not at all. With a `connection`, as in `EnqueueOptions`, all calls are
    added if and only if its transaction commits.

    Raises EnqueueFailed, with the handles of the calls sent so far, if some calls were not sent, or if the iterable or middleware raises.
    Calls that the iterable yielded before raising are still sent. Raises TypeError if `calls` is not iterable.
    """
    app, sent = default_app(), Sent[R]()
    within = None if connection is None else _within(app, connection)
    if isinstance(calls, AsyncIterable):
        async with aclosing(async_batches(calls)) as found:
            async for each in found:
                _stamp_batch(app, each, sent)
                await _send_batch(app, each, sent, within)
        return sent.handles
    sending: asyncio.Task[None] | None = None
    try:
        for batch in batches(calls):  # read a batch while the previous one is being sent: both take about the same time
            if sending is not None:
                await sending
                sending = None
            if batch is None:
                continue
            _stamp_batch(app, batch, sent)
            if connection is not None:
                await _send_batch(app, batch, sent, within)
            else:
                sending = asyncio.create_task(_send_batch(app, batch, sent))
                await asyncio.sleep(0)  # lets the task start
        if sending is not None:
            await sending
    finally:
        if sending is not None and not sending.done():
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    return sent.handles


def enqueue_sync(calls: Iterable[BareCall[R]], *, connection: Connection | None = None) -> list[JobHandle[R]]:
    """Like `enqueue`, but for code without an event loop and for plain iterables only. `calls` is read in the calling thread, where the
    `connection` is used too. Raises RuntimeError inside a running loop, unless a synchronous `connection` is given."""
    app, sent = default_app(), Sent[R]()
    if connection is None:
        refuse_inside_a_loop("enqueue_sync()", "await enqueue()")
        app.broker()  # as in `send_call_sync`
    for batch in batches(calls):
        if batch is not None:
            _stamp_batch(app, batch, sent)
            send = partial(_send_batch, app, batch, sent)
            run_sync(send()) if connection is None else _in_this_thread(app, connection, send)
    return sent.handles


async def send_together(app: App, calls: list[BareCall[Any]], connection: object) -> None:
    """Send the calls of a flow in one step: all of them are added, or none is."""
    await _send_together(app, _stamped(app, calls), None if connection is None else _within(app, connection))


def send_together_sync(app: App, calls: list[BareCall[Any]], connection: object) -> None:
    """Like `send_together`, for code without an event loop."""
    send = partial(_send_together, app, _stamped(app, calls))
    if connection is not None:
        _in_this_thread(app, connection, send)
    elif calls:
        app.broker()  # as in `send_call_sync`
        run_sync(send())


# --- batches ------------------------------------------------------------------------------------------------------


class Sent(Generic[R]):
    """The handles that one `enqueue()` has collected so far, including those of earlier jobs that were found instead of adding a job.
    `conflicts` has the handles of such jobs again, for calls with ``on_conflict="raise"``."""

    def __init__(self) -> None:
        self.handles: list[JobHandle[R]] = []
        self.conflicts: list[JobHandle[R]] = []

    def not_all(self, why: str) -> EnqueueFailed:
        message = f"not all calls were sent: {why}; {len(self.handles)} call(s) were sent, and .handles has their handles in order"
        return EnqueueFailed(message, handles=self.handles, conflicts=self.conflicts)


class Batch(Generic[R]):
    """At most 1,000 calls and 1 MiB, or one larger call. `error` is the exception that the iterable raised after these calls, if any."""

    def __init__(self) -> None:
        self.calls: list[BareCall[R]] = []
        self.error: Exception | None = None
        self._size = 0

    def add(self, call: BareCall[R]) -> bool:
        """Add the call, or return False if the batch is full. Raises TypeError for anything that is not a call."""
        if not isinstance(call, BareCall):
            raise TypeError(f"enqueue() got {call!r}: expected calls made by .bind(...); to send a flow, call its .delay()")
        size = self._size + len(call.envelope.payload)
        if self.calls and (size > MAX_BYTES or len(self.calls) >= MAX_ITEMS):
            return False
        self.calls.append(call)
        self._size = size
        return True


READ_AHEAD_TIMEOUT: Final = 0.05
"""Seconds to spend reading calls for the next batch while the current one is being sent. The rest is read after the store's answer."""


def batches(calls: Iterable[BareCall[R]]) -> Iterator[Batch[R] | None]:
    """Yield the calls of an iterable, which may be endless, in batches. Also yield None after every `READ_AHEAD_TIMEOUT` s of reading."""
    given: object = calls
    if not isinstance(given, Iterable):
        single = "put a single call in a list, or send it with .delay(...)"
        hint = single if isinstance(given, BareCall) else "write job.bind(...) for each call"
        raise TypeError(f"enqueue() got {given!r}: expected an iterable of calls; {hint}")
    batch, until = Batch[R](), time.monotonic() + READ_AHEAD_TIMEOUT
    try:
        for call in calls:
            is_full = not batch.add(call)
            if is_full:
                yield batch
                batch = Batch()
                batch.add(call)
            elif time.monotonic() > until:
                yield None
            else:
                continue
            until = time.monotonic() + READ_AHEAD_TIMEOUT
    except Exception as error:
        batch.error = error
    if batch.calls or batch.error is not None:
        yield batch


async def async_batches(calls: AsyncIterable[BareCall[R]]) -> AsyncGenerator[Batch[R], None]:
    """Yield the calls in batches. If `calls` is an async generator, close it at the end, because no other code can."""
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
        if batch.calls or batch.error is not None:
            yield batch


# --- sending ------------------------------------------------------------------------------------------------------

_Answer = Added | Refused | BaseException


_Enqueue = Callable[[Sequence[Envelope]], Awaitable[list[Added | Refused]]]


class _Within:
    """Adds envelopes in a caller's transaction. It has the same sending methods as `LoopClient`."""

    def __init__(self, enqueue: _Enqueue) -> None:
        self._enqueue = enqueue

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        for each in envelopes:
            if each.on_conflict is OnConflict.DEBOUNCE:
                raise ValueError(f"{each.job}: debounce= and connection= cannot be combined: a transaction cannot delay an earlier job")
        return await self._enqueue(envelopes)

    async def send(self, envelope: Envelope) -> Added | Refused:
        [answer] = await self.enqueue([envelope])
        return answer


_Send = Callable[[App, list[BareCall[Any]], _Within | None], Awaitable[Sequence[_Answer]]]


async def _send(app: App, call: BareCall[R], within: _Within | None = None) -> JobHandle[R]:
    if app.importing_module is not None:
        app.warn_of_sending(call.job)
    send = app.client().send if within is None else within.send
    settings = app.settings
    has_middleware = settings.middleware and _has_enqueue_middleware(app)
    try:
        answer = await (_through_middleware(app, call, send) if has_middleware else send(call.envelope))
    except Exception as error:
        _tell(app, [call], [error])
        raise
    handle = _outcome(app, call, answer, within)
    if settings.subscribers:
        _tell(app, [call], [handle])
    if isinstance(handle, BaseException):
        raise handle
    if _is_conflict(call, answer):
        raise KeyConflict(
            f"{call!r} was not sent: the job {handle.id} has its key {call.key!r}; "
            'on_conflict="keep" returns the handle of that job, "replace" cancels it',
            job_id=handle.id,
        )
    if app.run_inline is not None:
        await app.run_inline([answer])
    return handle


async def _send_batch(app: App, batch: Batch[R], sent: Sent[R], within: _Within | None = None) -> None:
    """Send the batch and add its handles to `sent`. Raises EnqueueFailed if some calls were not sent."""
    errors = list[BaseException]()
    for call, answer, outcome in await _outcomes(app, batch.calls, _answers, within):
        if isinstance(outcome, BaseException):
            errors.append(outcome)
            continue
        sent.handles.append(outcome)
        if _is_conflict(call, answer):
            sent.conflicts.append(outcome)
    for each in (*errors, batch.error):
        if each is not None:
            raise sent.not_all(f"{type(each).__name__}: {each}") from each
    if sent.conflicts:
        raise sent.not_all(f"{len(sent.conflicts)} call(s) found another job with their key, for example {sent.conflicts[0]!r}")


async def _send_together(app: App, calls: list[BareCall[Any]], within: _Within | None = None) -> None:
    for _, _, outcome in await _outcomes(app, calls, _answers_together, within) if calls else ():
        if isinstance(outcome, BaseException):
            raise outcome


async def _outcomes(
    app: App, calls: list[BareCall[R]], send: _Send, within: _Within | None
) -> Iterable[tuple[BareCall[R], _Answer, JobHandle[R] | BaseException]]:
    """Send calls, and tell subscribers about them. Return each call with the store's answer, and with its handle or error."""
    if app.importing_module is not None and calls:
        app.warn_of_sending(calls[0].job)
    try:
        answers = await send(app, calls, within)
    except Exception as error:
        _tell(app, calls, [error] * len(calls))
        raise
    outcomes = [_outcome(app, call, answer, within) for call, answer in zip(calls, answers, strict=True)]
    _tell(app, calls, outcomes)
    if app.run_inline is not None:
        await app.run_inline(answers)
    return zip(calls, answers, outcomes, strict=True)


async def _answers_together(app: App, calls: list[BareCall[Any]], within: _Within | None) -> Sequence[_Answer]:
    """Send a flow's calls. Those that have passed through the middleware wait until the last one has, and are then sent together."""
    lane = app.client() if within is None else within
    if not _has_enqueue_middleware(app):
        return await lane.enqueue([call.envelope for call in calls])
    passed, sent = dict[int, Envelope](), asyncio.get_running_loop().create_future()

    async def send(number: int, envelope: Envelope) -> Added | Refused:
        passed[number] = envelope
        if len(passed) == len(calls) and not sent.done():
            sent.set_result(await lane.enqueue([passed[place] for place in range(len(calls))]))
        answers: list[Added | Refused] = await sent
        return answers[number]

    try:
        async with asyncio.TaskGroup() as wrapping:
            for number, call in enumerate(calls):
                wrapping.create_task(_through_middleware(app, call, partial(send, number)))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return sent.result()  # type: ignore[no-any-return]


async def _answers(app: App, calls: list[BareCall[Any]], within: _Within | None) -> Sequence[_Answer]:
    """Return an answer or an error for each call. If middleware wraps the calls one by one, a failing call does not affect the others."""
    lane = app.client() if within is None else within
    if not _has_enqueue_middleware(app):
        try:
            return await lane.enqueue([call.envelope for call in calls]) if calls else []
        except TaskflowError as error:
            if within is not None and not isinstance(error, BrokerError):
                raise
            return [error] * len(calls)
    if within is None:
        return await asyncio.gather(*(_through_middleware(app, call, lane.send) for call in calls), return_exceptions=True)
    answers = list[_Answer]()
    for call in calls:  # one after another, because they share a connection
        try:
            answers.append(await _through_middleware(app, call, within.send))
        except (WrongConnection, ConfigurationError):
            raise
        except TaskflowError as error:
            answers.append(error)
    return answers


def _outcome(app: App, call: BareCall[R], answer: _Answer, within: _Within | None) -> JobHandle[R] | BaseException:
    """Return the handle of the job that was added, or of the job that already had the call's key. Return an error for a failed call."""
    origin = Origin.SENT if within is None else Origin.TRANSACTION
    if isinstance(answer, Added):
        return JobHandle(app, answer.id, call.job_type, origin=origin)
    if isinstance(answer, BaseException):
        return answer
    if answer.because == "clash":
        return TaskflowError(f"{call!r} was not sent: the store has another job with its id; make the call again, which gives it a new id")
    return JobHandle(app, answer.existing, call.job_type, is_new=answer.existing == answer.id, origin=origin)


def _tell(app: App, calls: Sequence[BareCall[Any]], outcomes: Sequence[JobHandle[Any] | BaseException]) -> None:
    if not app.settings.subscribers:
        return
    from taskflow.app.events import JobSent, SendingFailed

    emit = app.events().emit
    for call, outcome in zip(calls, outcomes, strict=True):
        if isinstance(outcome, BaseException):
            emit(SendingFailed(call.envelope, f"{type(outcome).__name__}: {outcome}"))
        else:
            emit(JobSent(call.envelope, parse_id(outcome.id), outcome.is_new))


def _is_conflict(call: BareCall[Any], answer: _Answer) -> bool:
    return call.raises_on_conflict and isinstance(answer, Refused) and answer.because == "key"


# --- stamps and middleware ----------------------------------------------------------------------------------------


def _stamp_batch(app: App, batch: Batch[R], sent: Sent[R]) -> None:
    """Let middleware stamp the calls of a batch, in this thread. Raises EnqueueFailed if middleware raises."""
    try:
        batch.calls = _stamped(app, batch.calls)
    except Exception as error:
        raise sent.not_all(f"{type(error).__name__}: {error}") from error


def _stamped(app: App, calls: list[BareCall[R]]) -> list[BareCall[R]]:
    layers = stamping(app.settings.middleware)
    if not layers:
        return calls
    envelopes = stamp(layers, [EnqueueCall(call.envelope, call.job_type, call.given) for call in calls])
    return [call if envelope is call.envelope else call.stamped(envelope) for call, envelope in zip(calls, envelopes, strict=True)]


def _has_enqueue_middleware(app: App) -> bool:
    return any(type(layer).enqueue is not Middleware.enqueue for layer in app.settings.middleware)


async def _through_middleware(app: App, call: BareCall[Any], send: Callable[[Envelope], Awaitable[Added | Refused]]) -> Added | Refused:
    answers: list[Added | Refused] = []

    async def innermost(enqueue_call: EnqueueCall) -> None:
        answers.append(await send(enqueue_call.to_envelope()))

    await enqueue_chain(app.settings.middleware, innermost)(EnqueueCall(call.envelope, call.job_type, call.given))
    if not answers:
        raise TaskflowError(f"{call!r} was not sent: a middleware's enqueue() did not await call_next(call)")
    return answers[-1]


# --- in a caller's transaction ------------------------------------------------------------------------------------


def _within(app: App, connection: object) -> _Within | None:
    from taskflow.app.connections.run_in_transaction import run_in_transaction

    return (
        None if app.ignores_connections else _Within(lambda each: run_in_transaction(app, connection, "enqueue", lambda s: s.enqueue(each)))
    )


def _in_this_thread(app: App, connection: object, send: Callable[[_Within | None], Coroutine[Any, Any, T]]) -> T:
    """Send on the connection, in this thread. Middleware runs in the portal's event loop. Raises TypeError for an async connection."""
    from taskflow.app.connections.adapters import adapter_class
    from taskflow.app.connections.run_in_transaction import run_in_transaction_sync

    if adapter_class(connection).is_awaited:
        raise TypeError(f"{type(connection).__name__} is an async connection: send with `await .delay()` or `await enqueue()`")
    if app.ignores_connections:
        return block_on(send(None))
    thread, has_middleware = CallersThread(), _has_enqueue_middleware(app)

    async def add(envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        here = partial(run_in_transaction_sync, app, connection, "enqueue", lambda store: store.enqueue(envelopes))
        return await asyncio.wrap_future(thread.submit(here)) if has_middleware else here()

    sending = send(_Within(add))
    if has_middleware:
        return thread.serve(sending)
    try:
        sending.send(None)  # everything that it awaits is already done
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError(f"{sending!r} waits for something")
