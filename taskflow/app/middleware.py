"""Defines middleware, which wraps the sending and the running of jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import reduce
from typing import Any

import msgspec

from taskflow.app.context import JobContext
from taskflow.model.envelope import Envelope
from taskflow.model.errors import TaskflowError
from taskflow.model.ids import id_text
from taskflow.model.verdict import Verdict


class EnqueueCall:
    """A call that is about to be sent.

    `headers`  a dict of str to str, which is sent with the job and which middleware may change
    """

    __slots__ = ("_envelope", "headers")

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self.headers: dict[str, str] = dict(envelope.headers)

    @property
    def job(self) -> str:
        """The job's name; read-only."""
        return self._envelope.job

    @property
    def queue(self) -> str:
        """The queue's name; read-only."""
        return self._envelope.queue

    @property
    def job_id(self) -> str:
        """The id that the job will have, as text; read-only."""
        return id_text(self._envelope.id)

    def to_envelope(self) -> Envelope:
        """Return the envelope to send, with the current headers."""
        return msgspec.structs.replace(self._envelope, headers=dict(self.headers))


EnqueueNext = Callable[[EnqueueCall], Awaitable[None]]
RunNext = Callable[[JobContext], Awaitable[Verdict]]


class Middleware:
    """The base class for middleware. Override `enqueue`, `run` or both. If a method does not await
    `call_next`, the call is not sent or the job is not run."""

    async def enqueue(self, call: EnqueueCall, call_next: EnqueueNext) -> None:
        """Wrap the sending of a call. This runs in the sender's process."""
        await call_next(call)

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        """Wrap one run, in the worker. The verdict can be inspected or replaced before it is settled.

        A method may await `call_next` again after an earlier call has returned. Two calls at the same time raise TaskflowError.
        """
        return await call_next(context)


def enqueue_chain(middleware: Sequence[Middleware], innermost: EnqueueNext) -> EnqueueNext:
    """Chain the `enqueue` methods of the middleware around `innermost`, with the first one outermost."""
    layers = [layer for layer in reversed(middleware) if type(layer).enqueue is not Middleware.enqueue]
    return reduce(_enqueue_layer, layers, innermost)


def run_chain(middleware: Sequence[Middleware], innermost: RunNext) -> RunNext:
    """Chain the `run` methods of the middleware around `innermost`, with the first one outermost."""
    layers = [layer for layer in reversed(middleware) if type(layer).run is not Middleware.run]
    return reduce(_run_layer, layers, innermost)


class OneAtATime:
    """The innermost call of a run. Middleware may repeat it, but not make two calls at the same time, because a run has only one slot."""

    def __init__(self, call: RunNext) -> None:
        self._call = call
        self._task: asyncio.Task[Any] | None = None
        self._is_over = False

    async def __call__(self, context: JobContext) -> Verdict:
        if self._task is not None or self._is_over:
            when = "after the run had ended" if self._is_over else "while an earlier call of it was under way"
            raise TaskflowError(f"call_next() was called {when}: a run has one slot, so await one call before the next")
        self._task = asyncio.current_task()
        try:
            return await self._call(context)
        finally:
            self._task = None

    async def end(self) -> None:
        """Refuse further calls. Cancel a call that middleware started in a separate task and did not await."""
        self._is_over = True
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.wait([self._task])


def _enqueue_layer(inner: EnqueueNext, layer: Middleware) -> EnqueueNext:
    async def call_layer(call: EnqueueCall) -> None:
        await layer.enqueue(call, inner)

    return call_layer


def _run_layer(inner: RunNext, layer: Middleware) -> RunNext:
    async def call_layer(context: JobContext) -> Verdict:
        verdict: object = await layer.run(context, inner)
        if not isinstance(verdict, Verdict):
            raise TypeError(
                f"{type(layer).__name__}.run() returned {verdict!r}: expected a verdict, as `await call_next(context)` returns it"
            )
        return verdict

    return call_layer
