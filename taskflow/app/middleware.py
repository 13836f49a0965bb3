"""Defines middleware, which wraps the sending and the running of jobs."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from functools import partial, reduce
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from taskflow.app.context import JobContext, NamesArguments, arguments_of
from taskflow.app.job_info import JobInfo
from taskflow.model.codec import decode_value
from taskflow.model.codec.function import CallArguments
from taskflow.model.envelope import OWN_HEADERS, Envelope
from taskflow.model.errors import ConfigurationError, TaskflowError
from taskflow.model.ids import id_text
from taskflow.model.job_schema import check_headers
from taskflow.model.printable import log_safely, nearest
from taskflow.model.verdict import Verdict

if TYPE_CHECKING:
    from taskflow.app.events import Event
    from taskflow.worker.measuring import WorkerMeasures

log: Final = logging.getLogger("taskflow")


class EnqueueCall:
    """A call as middleware sees it before it is sent."""

    __slots__ = ("_arguments", "_envelope", "_given", "_headers", "_job", "_of_telemetry")

    def __init__(self, envelope: Envelope, job: NamesArguments | None = None, given: CallArguments | None = None) -> None:
        """`given` holds the arguments as the caller gave them, or is None if only the payload is known."""
        self._envelope = envelope
        self._job = job
        self._given = given
        self._headers: dict[str, str] | None = None
        self._of_telemetry: Set[str] = frozenset()
        self._arguments: Mapping[str, Any] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers that are sent with the job, as a dict of str to str. Middleware may change them."""
        if self._headers is None:
            self._headers = dict(self._envelope.headers)
        return self._headers

    @headers.setter
    def headers(self, headers: dict[str, str]) -> None:
        self._headers = headers

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments by parameter name, with the defaults of those that were not given; read-only.

        For a call made by `delay`, they are the values that the caller gave. For one made by `bind`, or by a schedule, they are decoded
        from the payload, without annotations if this process does not know the job. If the job takes a result in a flow, that argument is
        missing.
        """
        if self._arguments is None:
            if self._job is None:  # then callers give all arguments by name
                self._arguments = MappingProxyType(decode_value(self._envelope.payload) if self._given is None else self._given[1])
            elif self._envelope.member is not None and self._envelope.member.takes is not None:
                self._arguments = self._job.arguments_beside(self._envelope.member.takes, self._envelope.payload)
            else:
                self._arguments = arguments_of(self._job, self._given, self._envelope.payload)
        return self._arguments

    @property
    def job(self) -> str:
        """The job's name; read-only."""
        return self._envelope.job

    @property
    def queue(self) -> str:
        """The queue's name; read-only."""
        return self._envelope.queue

    @property
    def tags(self) -> tuple[str, ...]:
        """The job's tags; read-only."""
        return self._envelope.tags

    @property
    def job_id(self) -> str:
        """The id that the job will have, as text; read-only."""
        return id_text(self._envelope.id)

    def to_envelope(self) -> Envelope:
        """Return the envelope to send, with the current headers. Telemetry's headers are left out if they don't fit. Raises TypeError or
        ValueError for invalid headers."""
        if self._headers is None or self._headers == self._envelope.headers:
            return self._envelope
        own = {name: text for name, text in self._envelope.headers.items() if name.startswith(OWN_HEADERS)}
        try:
            headers = check_headers({**own, **self._headers})
        except (TypeError, ValueError):
            if not self._of_telemetry:
                raise
            headers = check_headers({**own, **{name: text for name, text in self._headers.items() if name not in self._of_telemetry}})
        for name, text in headers.items():
            if name.startswith(OWN_HEADERS) and own.get(name) != text:
                raise ValueError(f"header {name!r}: names that begin with {OWN_HEADERS!r} are reserved for taskflow")
        return msgspec.structs.replace(self._envelope, headers=headers)

    def _tell_telemetry_apart(self) -> None:
        if self._headers is not None:
            self._of_telemetry = self._headers.keys() - self._envelope.headers.keys()


EnqueueNext = Callable[[EnqueueCall], Awaitable[None]]
RunNext = Callable[[JobContext], Awaitable[Verdict]]


class Middleware:
    """The base class for middleware. Override the methods you need; the others cost nothing. If `enqueue` or `run`
    does not await `call_next`, the call is not sent or the job is not run."""

    def stamp(self, calls: Sequence[EnqueueCall]) -> None:
        """Set headers on a batch of calls before they are sent; `enqueue()` sends up to 1,000 per batch. This is called once per batch, in
        the caller's thread, before the `enqueue` of any middleware. If it raises, no call in the batch is sent."""

    async def enqueue(self, call: EnqueueCall, call_next: EnqueueNext) -> None:
        """Wrap the sending of a call, in the sender's process. If you only set headers, `stamp` is several times as fast."""
        await call_next(call)

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        """Wrap one run, in the worker. The method can inspect or replace the verdict before the worker reports it to the store.

        It may await `call_next` again after an earlier call has returned. Two calls at the same time raise TaskflowError.
        """
        return await call_next(context)

    def around(self, context: JobContext) -> AbstractContextManager[Any] | AbstractAsyncContextManager[Any]:
        """Return a context manager inside which the job's function is called, in the function's thread, task or child process. It surrounds
        the job's `around=`. Only async jobs may have an async context manager. Errors of the context manager are the run's errors."""
        return nullcontext()

    async def ended(self, info: JobInfo) -> None:
        """Handle the end of a job, in a worker, once the store has recorded it. Jobs that end without a run are included, such as those
        that were cancelled or expired while they waited. The worker does not wait for this method, and logs its errors."""


class Telemetry(Middleware):
    """The base class of the objects in `configure(telemetry=[...])`: middleware that also receives events and workers' counts."""

    counts_runs: ClassVar[bool] = False
    """True if workers should count their runs."""
    records_history: ClassVar[bool] = False
    page: Callable[[], tuple[str, bytes]] | None = None
    """Returns the content type and the body of `/metrics` on a worker's health port. None if this object serves no metrics."""

    def on_event(self, event: Event) -> None:
        """Receive an event, like a function in `subscribers`."""

    def working(self, measures: WorkerMeasures | None) -> AbstractContextManager[None]:
        """Return a context manager that stays open while a worker runs. `measures` is None if no telemetry object has `counts_runs` set."""
        return nullcontext()

    def in_child(self, context: JobContext) -> AbstractContextManager[None]:
        """Return a context manager inside which a child process calls a job's function."""
        return nullcontext()

    def quiet(self) -> AbstractContextManager[None]:
        """Return a context manager whose context variables apply to the worker's calls to the broker, but not to jobs."""
        return nullcontext()


HOOKS: Final = ("stamp", "enqueue", "run", "around", "ended")
_PREFIXES: Final = ("on_", "before_", "after_")


def check_middleware(layer: object) -> None:
    """Raise ConfigurationError if `layer` isn't middleware, has a hook of the wrong kind, or has another method that looks like a hook."""
    where = f"configure(middleware=[... {layer!r} ...])"
    if not isinstance(layer, Middleware):
        raise ConfigurationError(f"{where}: expected instances of subclasses of taskflow.Middleware")
    if isinstance(layer, Telemetry):
        raise ConfigurationError(f"{where}: pass it in telemetry=[...]")
    for name in HOOKS:
        is_async = inspect.iscoroutinefunction(getattr(layer, name))
        if is_async is (name in ("stamp", "around")):
            kinds = ("a plain function, not an async one", "an async function, not a plain one")
            raise ConfigurationError(f"{where}: {name}() must be {kinds[not is_async]}")
    if inspect.isgeneratorfunction(layer.around) or inspect.isasyncgenfunction(layer.around):
        raise ConfigurationError(f"{where}: write @contextmanager or @asynccontextmanager above around()")
    classes = [each for each in type(layer).__mro__ if issubclass(each, Middleware) and each is not Middleware]
    for name in dict.fromkeys(name for each in classes for name, value in vars(each).items() if inspect.isfunction(value)):
        looks_like_a_hook = name.startswith(_PREFIXES) or nearest(name.lower(), HOOKS, similarity=0.75) is not None
        if looks_like_a_hook and name not in HOOKS and not name.startswith("_"):
            raise ConfigurationError(
                f"{where}: {name}() looks like a hook, but would never be called: the hooks are {', '.join(HOOKS)}; begin the "
                "names of other methods with an underscore"
            )


def enqueue_chain(middleware: Sequence[Middleware], innermost: EnqueueNext) -> EnqueueNext:
    """Chain the `enqueue` methods of the middleware around `innermost`, with the first one outermost."""

    def wrapped(inner: EnqueueNext, layer: Middleware) -> EnqueueNext:
        return lambda call: layer.enqueue(call, inner)

    return reduce(wrapped, [layer for layer in reversed(middleware) if type(layer).enqueue is not Middleware.enqueue], innermost)


RunLayer = tuple[Callable[[Any, RunNext, JobContext], Awaitable[Verdict]], Middleware]


def run_layers(middleware: Sequence[Middleware]) -> list[RunLayer]:
    """Return the middleware that has a `run` method, innermost first, each with the function that calls the method."""
    found = [layer for layer in reversed(middleware) if type(layer).run is not Middleware.run]
    return [(_observe if isinstance(layer, Telemetry) else _call_layer, layer) for layer in found]


def run_chain(layers: Sequence[RunLayer], innermost: RunNext) -> RunNext:
    for call, layer in layers:
        innermost = partial(call, layer, innermost)
    return innermost


async def _call_layer(layer: Middleware, inner: RunNext, context: JobContext) -> Verdict:
    return _checked(layer, await layer.run(context, inner))


async def _observe(layer: Telemetry, inner: RunNext, context: JobContext) -> Verdict:
    """Run a job within telemetry. Telemetry's own errors are logged, and change no verdict."""
    verdict, error = None, None

    async def call_next(context: JobContext) -> Verdict:
        nonlocal verdict, error
        try:
            verdict = await inner(context)
        except BaseException as raised:
            error = raised
            raise
        return verdict

    try:
        return _checked(layer, await layer.run(context, call_next))
    except Exception:
        if error is not None:  # the error comes from inside, not from telemetry
            raise
        log_safely(log.exception, "%s.run() failed; the job runs without it", type(layer).__name__)
    return verdict if verdict is not None else await inner(context)


def _checked(layer: Middleware, verdict: object) -> Verdict:
    if not isinstance(verdict, Verdict):
        raise TypeError(f"{type(layer).__name__}.run() returned {verdict!r}: expected a verdict, as `await call_next(context)` returns it")
    return verdict


def has_ended_hook(middleware: Sequence[Middleware]) -> bool:
    return any(type(layer).ended is not Middleware.ended for layer in middleware)


def stamping(middleware: Sequence[Middleware]) -> list[Middleware]:
    """Return the middleware that stamps calls before they are sent."""
    return [layer for layer in middleware if type(layer).stamp is not Middleware.stamp]


def stamp(layers: Sequence[Middleware], calls: Iterable[EnqueueCall]) -> list[Envelope]:
    """Let these layers stamp the calls, and return the calls' envelopes in the same order. Telemetry's errors are only logged."""
    calls = tuple(calls)  # middleware cannot reorder a tuple
    if calls:
        for layer in layers:
            if not isinstance(layer, Telemetry):
                layer.stamp(calls)
                continue
            try:
                layer.stamp(calls)
            except Exception:
                log_safely(log.exception, "%s.stamp() failed; the jobs are sent without it", type(layer).__name__)
            for call in calls:
                call._tell_telemetry_apart()
    return [call.to_envelope() for call in calls]


def stamped_envelopes(
    middleware: Sequence[Middleware], job_of: Callable[[str], NamesArguments | None], envelopes: Sequence[Envelope]
) -> list[Envelope]:
    """Let the middleware stamp the envelopes of schedules' jobs, and return them."""
    layers = stamping(middleware)
    return stamp(layers, [EnqueueCall(envelope, job_of(envelope.job)) for envelope in envelopes]) if layers else [*envelopes]


class OneAtATime:
    """The innermost call of a run. Middleware may repeat it, but not make two calls at the same time, because a run has only one slot."""

    def __init__(self, call: RunNext) -> None:
        self._call = call
        self._task: asyncio.Task[Any] | None = None
        self._is_over = False

    async def __call__(self, context: JobContext) -> Verdict:
        if self._task is not None or self._is_over:
            when = "after the run had ended" if self._is_over else "while an earlier call was still running"
            raise TaskflowError(f"call_next() was called {when}: a run has one slot, so await one call before the next")
        self._task = asyncio.current_task()
        try:
            return await self._call(context)
        finally:
            self._task = None

    def end(self) -> asyncio.Task[Any] | None:
        """Refuse further calls. Cancel a call that middleware started in a separate task and did not await, and return that task."""
        self._is_over = True
        if self._task is None or self._task is asyncio.current_task():
            return None
        self._task.cancel()
        return self._task
