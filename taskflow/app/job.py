"""The `job` decorator and the job types that it makes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Generic, ParamSpec, Protocol, Self, TypeAlias, TypeVar, cast, overload

from typing_extensions import Unpack

from taskflow.app import portal
from taskflow.app.app import App, default_app
from taskflow.app.call import Call
from taskflow.app.context import JobContext, running
from taskflow.app.execution_mode import place_for
from taskflow.app.functions import check_function, name_of, place
from taskflow.app.handle import JobHandle
from taskflow.app.job_type import AnyJob, JobType, Policy
from taskflow.app.option_names import unknown_option
from taskflow.app.options import OF_THE_DECORATOR, EnqueueOptions, JobOptions, Options, plain_options
from taskflow.app.sending import send
from taskflow.model.backoff import Backoff
from taskflow.model.envelope import Envelope, check_job_name
from taskflow.model.errors import DeclarationError
from taskflow.model.job_schema import bare_text
from taskflow.model.printable import shown

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Declared(JobType[R_co], Generic[P, R_co]):
    """A job type whose calls can be sent. Immutable; `options` returns a changed copy."""

    def __init__(self, app: App, function: Callable[..., Any], name: str, options: Options, **declared: Any) -> None:
        super().__init__(function, name, options, limits=app.limits, **declared)
        self.app = app

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
        return await send(self.app, self._call(args, kwargs))

    def delay_sync(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R_co]:
        """Like `delay`, for code without an event loop, from any thread. Raises RuntimeError inside a running loop."""
        portal.refuse_inside_a_loop("delay_sync()", "await .delay()")
        return portal.run_sync(send(self.app, self._call(args, kwargs)))

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Call[R_co]:
        """Return a call for `enqueue` to send later. Its arguments are checked and encoded here."""
        return self._call(args, kwargs)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call[R_co]:
        self.app.read_settings()
        payload = self.codec.encode_arguments(args, kwargs)
        envelope = Envelope(id=self.app.new_id(), job=self.name, payload=payload, **self._fields)
        return Call(self, envelope, raises_on_conflict=self._options.raises_on_conflict)

    def _arguments(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Prepend the context if the function takes one: that of the running job, or a context without effect outside of a job."""
        if not self.takes_context:
            return args
        return (running.get() or JobContext(job_name=self.name, queue=self.queue), *args)


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


# --- the overloads of the decorator -------------------------------------------------------------------------------
#
# A function may match several overloads of `_Decorator`; the first should win, in mypy and in pyright:
# - a first parameter of Any, object or no annotation takes a JobContext too, and is not one: such functions are met by the
#   overloads of `_Free` before those of `_Context` can take the parameter away;
# - mypy gives up and answers Any when an argument that contains an Any (say, a dict[str, Any] anywhere in the signature) matches
#   several overloads, unless their formals, once solved, are subtypes of each other, the Any's included. So a formal here
#   always ends up as the function's whole signature, names included, and its type variables are solved with Any by an Any;
# - a type variable with two constraints is not solved by a foreign type variable: a generic function falls through to the last
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
    def __call__(self, **declared: Unpack[JobOptions]) -> _Decorator: ...


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


_OPTIONS: Final = tuple(name for name in JobOptions.__annotations__ if name not in (*OF_THE_DECORATOR, "retry"))


def _declare(app: App, function: Callable[..., Any], declared: dict[str, Any]) -> AnyJob:
    check_function(function)
    try:
        _refuse_unknown(declared)
        given = {key: value for key, value in declared.items() if value is not None}
        name = given["name"] if "name" in given else name_of(function)
        options = Options(**plain_options(cast(EnqueueOptions, {key: given[key] for key in _OPTIONS if key in given})))
        policy = Policy(**{key: _policy_field(key, given[key]) for key in Policy.__struct_fields__ if key in given})
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
    known = sorted(JobOptions.__annotations__)
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
