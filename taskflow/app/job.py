"""The `job` decorator and the job types that it makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, cast, overload

import msgspec
from typing_extensions import Unpack

from taskflow.app.app import App, default_app
from taskflow.app.call import Call
from taskflow.app.context import JobContext, running
from taskflow.app.execution_mode import RunsIn, mode_for
from taskflow.app.job_function import check_function, location, name_of
from taskflow.app.job_type import AnyJob, JobType
from taskflow.app.option_checks import UNLIMITED_BY_NONE, declared_options
from taskflow.app.options import EnqueueOptions, JobOptions, PresetOptions
from taskflow.app.resolved_options import UNRESOLVED, Resolved
from taskflow.app.sendable import Sendable, check_app_of
from taskflow.app.settings import Settings
from taskflow.app.unknown_options import unknown_option
from taskflow.model.codec.signature import CallArguments
from taskflow.model.envelope import Envelope, check_job_name
from taskflow.model.errors import DeclarationError
from taskflow.model.job_schema import bare_text
from taskflow.model.printable import shown

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Declared(Sendable[P, R_co], JobType[R_co], Generic[P, R_co]):
    """A job that is declared here."""

    def __init__(self, app: App, function: Callable[..., Any], name: str, options: dict[str, Any], **declared: Any) -> None:
        super().__init__(function, name, options, limits=app.limits, read_settings=app.read_settings, **declared)
        self.app = app

    @property
    def _job_type(self) -> AnyJob:
        return self

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], given: CallArguments | None = None) -> Call[R_co]:
        settings = self.app.read_settings()
        payload = self.codec.encode_arguments(args, kwargs)
        resolved = self._resolved if self._resolved.settings is settings else self._resolve(settings)
        fields = resolved.envelope
        if resolved.declared_key is not None:
            fields = fields | resolved.options.key_fields(self.name, *resolved.declared_key.key_and_text(args, kwargs))
        envelope = Envelope(id=self.app.new_id(), job=self.name, payload=payload, **fields)
        return Call(self, envelope, raises_on_conflict=resolved.options.raises_on_conflict, given=given)

    def _renewed(self, envelope: Envelope) -> Envelope:
        resolved = self._current()
        if resolved.declared_key is None:
            return super()._renewed(envelope)
        # `key_text` lacks the secrets of a declared key, so its digest is computed from the arguments
        key = resolved.options.key_fields(self.name, *resolved.declared_key.key_and_text(*self.codec.decode_arguments(envelope.payload)))
        return Envelope(id=envelope.id, job=envelope.job, payload=envelope.payload, **{**resolved.envelope, **key})

    def _resolve(self, settings: Settings) -> Resolved:
        """Add the names of secrets, which are not known before the annotations are resolved."""
        resolved = super()._resolve(settings)
        if not self.codec.is_resolved:
            self._resolved = UNRESOLVED
        elif self.codec.secrets:
            self._resolved = resolved = msgspec.structs.replace(resolved, envelope={**resolved.envelope, "secrets": self.codec.secrets})
        return resolved

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Prepend a context to `args` if the function takes one: the running job's or, outside of a job, one that reports to no one."""
        if not self.takes_context:
            return args
        return (running.get() or JobContext(job_name=self.name, queue=self.queue, job=self, given=(args, kwargs)), *args)


class Job(Declared[P, R_co]):
    """A job whose function is async. Calling it runs the function directly, without sending anything."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        result: R_co = await self.function(*self._arguments(args, kwargs), **kwargs)
        return result


class SyncJob(Declared[P, R_co]):
    """A job whose function is not async. Workers run it in a thread or a child process. Calling
    it runs the function directly, without sending anything."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        result: R_co = self.function(*self._arguments(args, kwargs), **kwargs)
        return result


# --- the overloads of the decorator -------------------------------------------------------------------------------
#
# A function may match several overloads of `_Decorator`. The first match must win, in mypy and in pyright:
# - A first parameter that is typed as Any or object, or not at all, also accepts a JobContext, but is not meant for one. The overloads
#   of `_Free` match such functions before those of `_Context` can remove the parameter.
# - mypy infers Any if an argument that contains Any (say, a dict[str, Any] anywhere in the signature) matches several overloads, unless
#   their formal parameters, once solved, are subtypes of each other, including their Anys. So here each formal parameter is solved as
#   the function's whole signature, including names, and an Any in the function solves a type variable as Any.
# - A type variable with two constraints cannot be solved as another function's type variable. So a generic function falls through to
#   the last overload of its group, which keeps it generic.
# - A plain function that returns Any, or its caller's type variable, could pass for one that returns a coroutine. So it is matched first.
# tests/typing records what each checker infers from each signature.


class _Anything:
    """A type that no user's function mentions, so a parameter or a result that matches it must be Any."""


class _Nothing:
    """A second type that no user's function mentions, unrelated to `_Anything`."""


class _OwnContext(JobContext):
    """The second constraint of `_Context`, needed because a type variable cannot have just one. Never instantiated."""


_Free = TypeVar("_Free", object, _Anything)
_Context = TypeVar("_Context", JobContext, _OwnContext)
_Odd = TypeVar("_Odd", bound=_Anything)
_Odder = TypeVar("_Odder", bound=_Nothing)
First_contra = TypeVar("First_contra", contravariant=True)
Q = ParamSpec("Q")
S_co = TypeVar("S_co", covariant=True)


class _Function(Protocol[First_contra, P, Q, R_co, S_co]):  # pyright: ignore[reportInvalidTypeVarUse]  # P hides its variance
    """A function seen in two ways: `Q` is its whole signature, `P` the signature without the
    first parameter. `R_co` and `S_co` are both the return type."""

    @overload
    def __call__(self, first: First_contra, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> S_co: ...


class _WithCtx(Protocol[First_contra, P, R_co]):
    """A function whose first parameter is called `ctx`. mypy needs the name,
    because it rejects a nameless first parameter before **kwargs."""

    def __call__(self, ctx: First_contra, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class _Whole(Protocol[Q, R_co, S_co]):
    @overload
    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> R_co: ...
    @overload
    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> S_co: ...  # type: ignore[overload-cannot-match]  # a function must match both


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
    """Give the decorator its type, so that one list of overloads serves both ``@job`` and ``@job(...)``."""
    return cast(_Decorator, decorator)


@_typed
def job(function: Callable[..., Any] | None = None, /, **declared: Any) -> Any:
    """Turn a function into a job, and add it to the global registry.

    `name`          the name by which workers find the job (default: the function's module and qualified name)
    `queue`, `priority`, `timeout`, `expires`, `keep_result`, `key_scope`, `on_conflict`, `on_failure`   as in `EnqueueOptions`, for every
                    call
    `key`           the key of every call, or a template of it such as "{project_id}" or "{tenant}:{order.id}", which is formatted from the
                    call's arguments. None in it raises TypeError, unless it names another text: "{branch?main}"
    `tags`          tags of every call; those of `.options(tags=...)` are added to them
    `max_attempts`  the number of attempts, including the first (default 10)
    `retry`         the `Backoff` between attempts, or a plain function of the number of the attempt that failed (starting at 1) and its
                    exception. It returns the wait in seconds or as a timedelta, or None to fail the job at once
    `retry_on`      the exceptions after which the job is retried (default `Exception`); any other fails it at once
    `discard_on`    exceptions that fail the job at once, even if `retry_on` covers them
    `aliases`       former names of the job, so that waiting jobs with these names still run
    `runs_in`       "process" for long computations and code that may crash: the job runs in a child process, which is
                    killed if the run exceeds its timeout or is cancelled. If the child dies, for example from a segfault,
                    only that run fails, and it is retried whatever `retry_on` says. By default, an async function runs in
                    the event loop ("loop") and a plain one in a thread ("thread")
    `stop_grace`    with ``runs_in="process"``: seconds or a timedelta between asking a run to stop and killing its process. A plain
                    function is asked by `JobStopping`, which is raised inside it, and an async one by cancelling it (default 0: the
                    process is killed at once)
    `schedule`      a `Cron` or `Every`, any object with a method ``next(after)``, a list of these, or None. While a worker that
                    declares the schedule is running, the job is added at each of its times, once in the whole fleet
    `overlap`       whether a time adds a job while an earlier one of the schedule is live: "allow" (default) adds it, "skip"
                    does not, and "latest" replaces an earlier job that is waiting
    `catch_up`      which of the times that passed while no worker was running fire later: the "latest" (default), "all" or "none"
    `max_delay`     how late a time may still fire, in seconds or as a timedelta (default None: no limit)

    An async function becomes a `Job`, a plain one a `SyncJob`. Raises DeclarationError for an invalid declaration.
    """
    return _decorator({})(function, **declared)


def preset(**options: Unpack[PresetOptions]) -> _Decorator:
    """Return a decorator like `job` whose jobs have these options, unless they say otherwise.

    It takes the options of `job`, except `name` and `aliases`. Use it as ``@io`` or ``@io(timeout=60)``; ``io(timeout=60)`` by itself is
    another preset. Raises DeclarationError for an invalid option, naming it.
    """
    try:
        for name in options:
            if name in OF_ONE_JOB:
                raise TypeError(f"{name}= belongs to one job: give it where the preset is used, as in @io({name}=...)")
        _refuse_unknown(options)
        declared_options(options)
    except (TypeError, ValueError) as error:
        raise DeclarationError(f"preset(): {error}") from error
    return _typed(_decorator(dict(options)))


def _decorator(preset: dict[str, Any]) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any] | None = None, /, **declared: Any) -> Any:
        says = {name: value for name, value in declared.items() if value is not None or name in UNLIMITED_BY_NONE or name not in preset}
        given = {**preset, **says}
        return _decorator(given) if function is None else _declare(default_app(), function, given)

    return decorate


SCHEDULING: Final = frozenset({"schedule", "overlap", "catch_up", "max_delay"})
OF_ONE_JOB: Final = ("name", "aliases")


def _declare(app: App, function: Callable[..., Any], declared: dict[str, Any]) -> AnyJob:
    check_function(function)
    try:
        _refuse_unknown(declared)
        name = declared["name"] if declared.get("name") is not None else name_of(function)
        options, policy = declared_options(declared)
        check_app_of(declared.get("on_failure"), app)
        aliases = () if declared.get("aliases") is None else _aliases(declared["aliases"])
        kind = Job if inspect.iscoroutinefunction(function) else SyncJob
        runs_in = mode_for(function, declared.get("runs_in"))
        _check_stop_grace(declared.get("stop_grace"), runs_in)
        made: AnyJob = kind(app, function, _job_name("name", name), options, policy=policy, aliases=aliases, runs_in=runs_in)
        if "key" in options:
            from taskflow.app.declared_key import declared_key

            made._with({**options, "key": declared_key(options["key"], made)})
        if not SCHEDULING.isdisjoint(declared):
            from taskflow.app.declared_schedules import declared_schedules

            made.schedules = declared_schedules(made, declared)
    except DeclarationError:
        raise
    except (TypeError, ValueError) as error:
        raise DeclarationError(f"@job on {location(function)}: {error}") from error
    app.registry.add(made)
    return made


def _refuse_unknown(declared: Mapping[str, Any]) -> None:
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


def _check_stop_grace(value: object, runs_in: RunsIn) -> None:
    if value is not None and runs_in != "process":
        instead = "an async function is cancelled" if runs_in == "loop" else "nothing can interrupt a thread: check ctx.cancelled"
        raise ValueError(f'stop_grace={shown(value)}: only a job with runs_in="process" takes it; {instead}')
