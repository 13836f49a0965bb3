"""The `job` decorator and the job types that it makes."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, Final, Generic, ParamSpec, Protocol, Self, TypeAlias, TypeVar, cast, overload

import msgspec
from typing_extensions import Unpack

from taskflow.app import portal
from taskflow.app.app import App
from taskflow.app.call import Call
from taskflow.app.context import JobContext, running
from taskflow.app.default_app import default_app
from taskflow.app.execution_mode import RunsIn, place_for
from taskflow.app.functions import check_function, signature_for_callers, takes_context
from taskflow.app.handle import JobHandle
from taskflow.app.option_names import unknown_option
from taskflow.app.options import EnqueueOptions, Options, plain_options
from taskflow.app.registry import name_of, place
from taskflow.model.backoff import Backoff
from taskflow.model.codec import FunctionCodec
from taskflow.model.envelope import Envelope, check_envelope, check_job_name
from taskflow.model.errors import DeclarationError
from taskflow.model.ids import key_digest
from taskflow.model.job_schema import bare_text
from taskflow.model.shown import shown

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Errors = tuple[type[BaseException], ...]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Decides which errors of a run are retried: those in `retry_on`, except those in `discard_on`."""

    retry: Backoff = Backoff()
    retry_on: Errors = (Exception,)
    discard_on: Errors = ()


class Declared(Generic[P, R_co]):
    """A job type: its function, its name, and the options of its calls. Immutable; `options` returns a changed copy.

    It copies `__name__`, `__doc__` and so on from the function. Its signature is the one for callers, without the context.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def __init__(
        self,
        app: App,
        function: Callable[..., Any],
        name: str,
        options: Options,
        *,
        policy: Policy,
        aliases: tuple[str, ...],
        runs_in: RunsIn,
    ) -> None:
        self.app = app
        self.function = function
        self.name = name
        self.policy = policy
        self.aliases = aliases
        self.runs_in: RunsIn = runs_in
        self.takes_context = takes_context(function)
        functools.update_wrapper(cast(Any, self), function, updated=())
        self.__signature__ = signature_for_callers(function, skip=int(self.takes_context))
        self.codec = FunctionCodec(function, name=name, skip=int(self.takes_context), limits=app.limits)
        self._with(options)

    @property
    def queue(self) -> str:
        return self._options.queue

    @property
    def key(self) -> str | None:
        return self._options.key

    def options(self, **options: Unpack[EnqueueOptions]) -> Self:
        """Return a copy whose calls have these options; see `EnqueueOptions`. Raises TypeError or ValueError, naming the wrong option."""
        changed = copy.copy(self)
        changed._with(self._options.replaced(options))
        return changed

    async def delay(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R_co]:
        """Send a call. Its arguments are bound, checked and encoded here, so errors in them are raised here.

        Raises EncodeError (a TypeError) naming the argument, BrokerUnavailable if the store does not answer in time, StoreFull, and
        KeyConflict with ``on_conflict="raise"``. If `delay` is cancelled, the job may have been sent.
        """
        return await self.app.send(self._call(args, kwargs))

    def delay_sync(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R_co]:
        """Like `delay`, for code without an event loop, from any thread. Raises RuntimeError inside a running loop."""
        portal.refuse_inside_a_loop("delay_sync()", "await .delay()")
        return portal.run_sync(self.app.send(self._call(args, kwargs)))

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Call[R_co]:
        """Return a call for `enqueue` to send later. Its arguments are checked and encoded here."""
        return self._call(args, kwargs)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call[R_co]:
        self.app.read_settings()
        payload = self.codec.encode_arguments(args, kwargs)
        envelope = Envelope(id=self.app.new_id(), job=self.name, payload=payload, **self._fields)
        return Call(self, envelope, raises_on_conflict=self._options.raises_on_conflict)

    def _with(self, options: Options) -> None:
        self._options = options
        self._fields = _envelope_fields(self.name, options)

    def _arguments(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Prepend the context if the function takes one: that of the running job, or a context without effect outside of a job."""
        if not self.takes_context:
            return args
        return (running.get() or JobContext(job_name=self.name, queue=self.queue), *args)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class Job(Declared[P, R_co]):
    """A job with an async function. Calling it runs the function directly."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        result: R_co = await self.function(*self._arguments(args), **kwargs)
        return result


class SyncJob(Declared[P, R_co]):
    """A job with a plain function, which workers run in a thread or in a child process. Calling it runs the function directly."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        result: R_co = self.function(*self._arguments(args), **kwargs)
        return result


AnyJob = Declared[..., Any]


# --- the overloads of the decorator -------------------------------------------------------------------------------
#
# A function may match several overloads of `_Decorator`; the first should win, in mypy and in pyright:
# - a first parameter of Any, object or no annotation takes a JobContext too, and is not one: such functions are met by the
#   overloads of `_Free` before those of `_Context` can take the parameter away;
# - mypy gives up and answers Any when an argument that contains an Any (say, a dict[str, Any] anywhere in the signature) matches
#   several overloads, unless their formals, once solved, are subtypes of each other, the Any's included. So a formal here
#   always ends up as the function's whole signature, names included, and its type variables are solved with Any by an Any;
# - a type variable with two constraints is not solved by a foreign type variable: a generic function goes on to the last
#   overload of its group, which keeps it generic;
# - a plain function that returns Any, or its caller's type variable, would pass for one that returns a coroutine: it is met first.
# tests/typing states what each checker makes of each signature.


class _Anything:
    """A type that no function has: a parameter or a result that matches it is Any."""


class _Nothing:
    """A second such type, unrelated to `_Anything`."""


class _OwnContext(JobContext):
    """Never instantiated: the second constraint of `_Context`."""


_Free = TypeVar("_Free", object, _Anything)
_Context = TypeVar("_Context", JobContext, _OwnContext)
_Odd = TypeVar("_Odd", bound=_Anything)
_Odder = TypeVar("_Odder", bound=_Nothing)
First_contra = TypeVar("First_contra", contravariant=True)
Q = ParamSpec("Q")
S_co = TypeVar("S_co", covariant=True)


class _Function(Protocol[First_contra, P, Q, R_co, S_co]):  # pyright: ignore[reportInvalidTypeVarUse]  # P hides its variance
    """`Q` is the whole signature, `P` the signature without the first parameter. `R_co` and `S_co` are both the return type."""

    @overload
    def __call__(self, first: First_contra, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> S_co: ...


class _WithCtx(Protocol[First_contra, P, R_co]):
    """Used by mypy, which refuses a nameless first parameter before **kwargs. That is why it has the name `ctx`."""

    def __call__(self, ctx: First_contra, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class _Whole(Protocol[Q, R_co, S_co]):
    @overload
    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> R_co: ...
    @overload
    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> S_co: ...  # type: ignore[overload-cannot-match]  # both must hold


_Async: TypeAlias = Coroutine[Any, Any, R]


class _Decorator(Protocol):
    """The type of `job` and of ``job(...)``."""

    # Plain functions that return Any or a type variable.
    @overload
    def __call__(self, function: _Function[_Free, P, Q, _Odd, _Odder], /) -> SyncJob[Q, _Odd]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: _Function[_Context, P, Q, _Odd, _Odder], /) -> SyncJob[P, _Odd]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: _Whole[Q, _Odd, _Odder], /) -> SyncJob[Q, _Odd]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[..., _Anything], /) -> SyncJob[..., Any]: ...

    # Async functions.
    @overload
    def __call__(self, function: _Function[_Free, P, Q, _Async[R], _Async[R]], /) -> Job[Q, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: _Function[_Context, P, Q, _Async[R], _Async[R]], /) -> Job[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: _WithCtx[_Context, P, _Async[R]], /) -> Job[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[Q, _Async[R]], /) -> Job[Q, R]: ...  # type: ignore[overload-overlap]

    # Plain functions.
    @overload
    def __call__(self, function: _Function[_Free, P, Q, R, R], /) -> SyncJob[Q, R]: ...
    @overload
    def __call__(self, function: _Function[_Context, P, Q, R, R], /) -> SyncJob[P, R]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, function: _WithCtx[_Context, P, R], /) -> SyncJob[P, R]: ...
    @overload
    def __call__(self, function: Callable[Q, R], /) -> SyncJob[Q, R]: ...

    @overload
    def __call__(
        self,
        *,
        name: str | None = None,
        queue: str | None = "default",
        priority: int | None = 0,
        max_attempts: int | None = 10,
        retry: Backoff | None = ...,
        retry_on: Sequence[type[BaseException]] | None = (Exception,),
        discard_on: Sequence[type[BaseException]] | None = (),
        timeout: float | timedelta | None = None,
        expires: float | timedelta | None = None,
        keep_result: float | timedelta | None = 300.0,
        aliases: Sequence[str] | None = (),
        runs_in: RunsIn | None = None,
    ) -> _Decorator: ...


def _typed(decorator: Callable[..., Any]) -> _Decorator:
    """Give the decorator its type: one list of overloads serves ``@job`` and ``@job(...)``."""
    return cast(_Decorator, decorator)


@_typed
def job(function: Callable[..., Any] | None = None, /, **declared: Any) -> Any:
    """Make a job of a function, and add it to the global registry.

    `name`          the name by which workers find the job; by default module and qualified name
    `queue`, `priority`, `timeout`, `expires`, `keep_result`   as in `EnqueueOptions`, for every call
    `max_attempts`  runs that may end in failure, 10 by default
    `retry`         the wait between attempts
    `retry_on`      the errors that are retried; any other fails the job at once
    `discard_on`    errors that fail the job at once, even if `retry_on` names them
    `aliases`       former names, so that waiting jobs with these names still run
    `runs_in`       "process" for long computations and code that may crash: the job runs in a child process, which is killed if the run
                    exceeds its timeout or is cancelled. If the child dies, of a segfault for example, only that run fails. It is retried
                    whatever `retry_on` says. By default an async function runs in the event loop ("loop"), a plain one in a "thread"

    An async function becomes a `Job`, a plain one a `SyncJob`. Raises DeclarationError for a wrong declaration.
    """
    if function is not None:
        return _declare(default_app(), function, declared)
    return lambda decorated: _declare(default_app(), decorated, declared)


_POLICY = ("retry", "retry_on", "discard_on")
_OPTIONS = ("queue", "priority", "max_attempts", "timeout", "expires", "keep_result")


def _declare(app: App, function: Callable[..., Any], declared: dict[str, Any]) -> AnyJob:
    check_function(function)
    try:
        _refuse_unknown(declared)
        given = {key: value for key, value in declared.items() if value is not None}
        name = given["name"] if "name" in given else name_of(function)
        options = Options(**plain_options(cast(EnqueueOptions, {key: given[key] for key in _OPTIONS if key in given})))
        policy = Policy(**{key: _policy_field(key, given[key]) for key in _POLICY if key in given})
        aliases = _aliases(given.get("aliases", ()))
        kind = Job if inspect.iscoroutinefunction(function) else SyncJob
        runs_in = place_for(function, given.get("runs_in"))
        made: AnyJob = kind(app, function, _job_name("name", name), options, policy=policy, aliases=aliases, runs_in=runs_in)
    except DeclarationError:
        raise
    except (TypeError, ValueError) as error:
        raise DeclarationError(f"@job on {place(function)}: {error}") from error
    app.registry.add(made)
    return made


def _refuse_unknown(declared: dict[str, Any]) -> None:
    known = sorted((*_POLICY, *_OPTIONS, "name", "aliases", "runs_in"))
    for key in declared:
        if key not in known:
            raise TypeError(unknown_option(key, known, EnqueueOptions.__annotations__, f"with a call, as in .options({key}=...)"))


def _job_name(option: str, name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{option}={shown(name)}: expected a str")
    return bare_text(check_job_name(name))


def _aliases(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"aliases={shown(value)}: expected a tuple of names, as in aliases=({shown(value)},)")
    return tuple(_job_name("aliases", alias) for alias in value)


def _policy_field(name: str, value: Any) -> Any:
    if name == "retry":
        if not isinstance(value, Backoff):
            raise TypeError(f"retry={shown(value)}: expected a Backoff")
        return value
    errors = tuple(value) if isinstance(value, Sequence) else (value,)
    for error in errors:
        if not (isinstance(error, type) and issubclass(error, BaseException)):
            raise TypeError(f"{name}={shown(value)}: expected a tuple of exception classes")
    return errors


def _envelope_fields(name: str, options: Options) -> dict[str, Any]:
    """Return the options of every call's envelope, without defaults. Raises ValueError, naming the wrong option."""
    fields = {field: getattr(options, field) for field in Options.__struct_fields__ if field not in ("key", "raises_on_conflict")}
    fields["key"] = None if options.key is None else key_digest(options.queue, name, options.key)
    check_envelope(Envelope(id=b"", job=name, payload=b"", **fields))
    return {field: value for field, value in fields.items() if value != getattr(_PLAIN, field)}


_PLAIN: Final = Envelope(id=b"", job="", payload=b"")
