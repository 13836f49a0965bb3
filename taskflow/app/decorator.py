"""The `job` decorator: its types, the checks of functions and options, and the default names and execution modes of jobs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, ParamSpec, Protocol, TypeAlias, TypeVar, cast, get_args, overload

from typing_extensions import Unpack

from taskflow.app.app import App, default_app
from taskflow.app.around import dependencies_of, refuse_async
from taskflow.app.context import JobContext, takes_context
from taskflow.app.job import Job, SyncJob, check_app_of
from taskflow.app.job_type import AnyJob, location
from taskflow.app.options import (
    UNLIMITED_BY_NONE,
    BatchJobOptions,
    EnqueueOptions,
    JobOptions,
    PresetOptions,
    RunsIn,
    declared_options,
    unknown_option,
)
from taskflow.model.batch import Failure
from taskflow.model.envelope import check_job_name
from taskflow.model.errors import DeclarationError
from taskflow.model.job_schema import bare_text
from taskflow.model.printable import shown

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
Q = ParamSpec("Q")

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
    """Like `_Anything`, but unrelated to it: a result that matches both must be Any or one of the function's own type variables."""


class _OwnContext(JobContext):
    """The second constraint of `_Context`, needed because a type variable cannot have just one. Never instantiated."""


_Free = TypeVar("_Free", object, _Anything)
_Context = TypeVar("_Context", JobContext, _OwnContext)
_AnyResult = TypeVar("_AnyResult", bound=_Anything)
_AnyResultToo = TypeVar("_AnyResultToo", bound=_Nothing)
First_contra = TypeVar("First_contra", contravariant=True)
S_co = TypeVar("S_co", covariant=True)


class _Function(Protocol[First_contra, P, Q, R_co, S_co]):  # pyright: ignore[reportInvalidTypeVarUse]  # P hides its variance
    """A function with two views of its signature: `Q` is all of it, and `P` leaves out the first parameter."""

    @overload
    def __call__(self, first: First_contra, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> S_co: ...


class _WithCtx(Protocol[First_contra, P, R_co]):
    """A function whose first parameter is called `ctx`: mypy rejects a nameless first parameter before **kwargs."""

    def __call__(self, ctx: First_contra, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class _Whole(Protocol[Q, R_co, S_co]):
    @overload
    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> R_co: ...
    @overload
    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> S_co: ...  # type: ignore[overload-cannot-match]  # a function must match both overloads


_Async: TypeAlias = Coroutine[Any, Any, R]


class _Decorator(Protocol):
    """The type of `job` and of ``job(...)``."""

    # Plain functions that return Any or a type variable.
    @overload
    def __call__(self, function: _Function[_Free, P, Q, _AnyResult, _AnyResultToo], /) -> SyncJob[Q, _AnyResult]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: _Function[_Context, P, Q, _AnyResult, _AnyResultToo], /) -> SyncJob[P, _AnyResult]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: _Whole[Q, _AnyResult, _AnyResultToo], /) -> SyncJob[Q, _AnyResult]: ...  # type: ignore[overload-overlap]
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
    def __call__(self, **declared: Unpack[BatchJobOptions]) -> _BatchDecorator: ...
    @overload
    def __call__(self, **declared: Unpack[JobOptions]) -> _Decorator: ...


class _BatchDecorator(Protocol):
    """The type of ``job(batch=...)``. A call to the job takes one element of the function's list, and its result is the matching element of
    the returned list."""

    @overload
    def __call__(self, function: Callable[[list[T]], _Async[Sequence[R | Failure]]], /) -> Job[[T], R]: ...
    @overload
    def __call__(self, function: Callable[[list[T]], Sequence[R | Failure]], /) -> SyncJob[[T], R]: ...


def _typed(decorator: Callable[..., Any]) -> _Decorator:
    """Give the decorator its type, so that one list of overloads serves both ``@job`` and ``@job(...)``."""
    return cast(_Decorator, decorator)


@_typed
def job(function: Callable[..., Any] | None = None, /, **declared: Any) -> Any:
    """Turn a function into a job, and add it to the global registry.

    `name`          the name by which workers find the job (default: the function's module and qualified name)
    `queue`, `priority`, `timeout`, `expires`, `keep_result`, `key_scope`, `on_conflict`, `throttle`, `debounce`, `at_most`, `on_failure`
                    as in `EnqueueOptions`, for every call
    `key`           the key of every call, or a template for it such as "{project_id}" or "{tenant}:{order.id}", which is formatted from the
                    call's arguments. A value of None raises TypeError, unless the template has a text for that case: "{branch?main}"
    `tags`          tags of every call; those of `.options(tags=...)` are added to them
    `max_attempts`  the number of attempts, including the first (default 10)
    `retry`         the `Backoff` between attempts, or a plain function that takes the number of the failed attempt (starting at 1) and its
                    exception. It returns the wait in seconds or as a timedelta, or None to fail the job at once
    `keep_arguments`  True keeps the arguments of a successful job for as long as its result; see `JobInfo.arguments` (default False: a
                    success drops them). If arguments and result together exceed 60 MiB, only the result is kept
    `retry_on`      the exceptions after which the job is retried (default `Exception`); any other fails it at once
    `discard_on`    exceptions that fail the job at once, even if `retry_on` covers them
    `batch`         a `Batch`: workers gather calls, and the function gets the arguments of several calls in a list. It returns a list of
                    their results, in the same order, with a `Failure` for each call that failed
    `aliases`       former names of the job, so that waiting jobs with these names still run
    `runs_in`       "process" for long computations and code that may crash: the job runs in a child process, which is
                    killed if the run exceeds its timeout or is cancelled. If the child dies, for example from a segfault,
                    only that run fails, and it is retried whatever `retry_on` says. By default, an async function runs in
                    the event loop ("loop") and a plain one in a thread ("thread")
    `stop_grace`    with ``runs_in="process"``: seconds or a timedelta between asking a run to stop and killing its process. A plain
                    function is asked by raising `JobStopping` inside it, an async one by cancelling it (default 0: the process is killed
                    at once)
    `timeout_raises`  True raises `JobStopping` inside a plain function, at any point of its Python code, when its run exceeds its timeout.
                    If the function then returns a value, that is the run's result. A child process is killed `stop_grace` seconds later, or
                    5 s later if `stop_grace` is 0 (default False: `JobContext.cancelled` is set for a function in a thread, and the run
                    fails whatever the function returns)
    `around`        functions that take the run's `JobContext` and return a context manager. The job's function runs inside them, in the
                    same thread, task or child process, the first one outermost. Their errors are the run's errors. The
                    functions of `configure(defaults=...)` and of a preset surround these. If the job is async, they may be async too
    `limits`        a list of fleet-wide limits, such as ``Concurrency(3, key="tenant")``, ``Rate(100, per=60)``, or a `Limit` that
                    jobs share. A job has to pass them before it becomes ready
    `fair`          a parameter, such as "tenant", or an attribute of one, such as "order.customer". The jobs of a queue take turns by its
                    value, so one tenant's many jobs don't hold up those of another
    `schedule`      a `Cron` or `Every`, any object with a method ``next(after)``, a list of these, or None. While a worker that
                    declares the schedule is running, the job is added at each scheduled time, once in the whole fleet
    `overlap`       what happens at a scheduled time while an earlier job of the schedule is live: "allow" (default) adds another, "skip"
                    doesn't, and "latest" replaces an earlier job that is still waiting
    `catch_up`      if times passed while no worker was running, which of them fire afterwards: the "latest" (default), "all" or "none"
    `max_delay`     how late a scheduled time may still fire, in seconds or as a timedelta (default None: no limit)

    An async function becomes a `Job`, a plain one a `SyncJob`. Raises DeclarationError for an invalid declaration.
    """
    return _decorator({})(function, **declared)


def preset(**options: Unpack[PresetOptions]) -> _Decorator:
    """Return a decorator like `job` whose jobs have these options unless they set their own.

    It takes the options of `job`, except `name`, `aliases` and `batch`. Use it as ``@io`` or ``@io(timeout=60)``; ``io(timeout=60)`` by
    itself is another preset. Raises DeclarationError for an invalid option, naming it.
    """
    try:
        for name in options:
            if name in OF_ONE_JOB:
                raise TypeError(f"{name}= belongs to one job: pass it where the preset is used, as in @io({name}=...)")
        _refuse_unknown(options)
        declared_options(options)
    except (TypeError, ValueError) as error:
        raise DeclarationError(f"preset(): {error}") from error
    return _typed(_decorator(dict(options)))


def _decorator(preset: dict[str, Any]) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any] | None = None, /, **declared: Any) -> Any:
        says = {name: value for name, value in declared.items() if value is not None or name in UNLIMITED_BY_NONE or name not in preset}
        given = {**preset, **says}
        if (outer := preset.get("around")) and isinstance(inner := says.get("around"), list | tuple):
            given["around"] = [*outer, *inner]
        return _decorator(given) if function is None else _declare(default_app(), function, given)

    return decorate


SCHEDULING: Final = frozenset({"schedule", "overlap", "catch_up", "max_delay"})
OF_ONE_JOB: Final = ("name", "aliases", "batch")


def _declare(app: App, function: Callable[..., Any], declared: dict[str, Any]) -> AnyJob:
    check_function(function)
    try:
        _refuse_unknown(declared)
        name = declared["name"] if declared.get("name") is not None else name_of(function)
        options, policy = declared_options(declared)
        check_app_of(declared.get("on_failure"), app)
        aliases = () if declared.get("aliases") is None else declared["aliases"]
        if isinstance(aliases, str) or not isinstance(aliases, Sequence):
            raise TypeError(f"aliases={shown(aliases)}: expected a tuple of names, as in aliases=({shown(aliases)},)")
        aliases = tuple(_job_name("aliases", alias) for alias in aliases)
        kind = Job if inspect.iscoroutinefunction(function) else SyncJob
        runs_in = mode_for(function, declared.get("runs_in"))
        if (grace := declared.get("stop_grace")) is not None and runs_in != "process":
            in_thread = "a thread is interrupted only with timeout_raises=True: check ctx.cancelled"
            instead = "an async function is cancelled" if runs_in == "loop" else in_thread
            raise ValueError(f'stop_grace={shown(grace)}: it applies only to a job with runs_in="process"; {instead}')
        if "batch" in policy:
            check_batch(function, runs_in, policy)
        made: AnyJob = kind(app, function, _job_name("name", name), options, policy=policy, aliases=aliases, runs_in=runs_in)
        if kind is SyncJob:
            refuse_async(policy.get("around", ()), made.dependencies)
        if "key" in options:
            from taskflow.app.declared_key import declared_key

            made._with({**options, "key": declared_key(options["key"], made)})
        if declared.get("limits") is not None:
            from taskflow.app.declared_limits import declared_limits

            made.limits = declared_limits(declared["limits"], made)
        if declared.get("fair") is not None:
            from taskflow.app.declared_limits import key_of

            made.fair = key_of(declared["fair"], made, "fair")
        if not SCHEDULING.isdisjoint(declared):
            from taskflow.app.declared_schedules import declared_schedules

            made.schedules = declared_schedules(made, declared)
    except DeclarationError:
        raise
    except (TypeError, ValueError) as error:
        raise DeclarationError(f"@job on {location(function)}: {error}") from error
    app.registry.add(made)
    return made


def check_batch(function: Callable[..., Any], runs_in: RunsIn, policy: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError if the function can't be used for a batch job."""
    if runs_in == "process" or policy.get("timeout_raises"):
        raise ValueError('batch= cannot be combined with runs_in="process" or timeout_raises=True')
    parameters = list(inspect.signature(function).parameters.values())
    own = [each for each in parameters if each.name not in dependencies_of(parameters)]
    if takes_context(function) or len(own) != 1 or own[0].kind not in (own[0].POSITIONAL_ONLY, own[0].POSITIONAL_OR_KEYWORD):
        raise TypeError("batch=: the function must take one list with each job's argument, and no JobContext; dependencies are allowed")


def _refuse_unknown(declared: Mapping[str, Any]) -> None:
    known = sorted(BatchJobOptions.__annotations__)
    for key in declared:
        if key not in known:
            raise TypeError(unknown_option(key, known, EnqueueOptions.__annotations__, f"with a call, as in .options({key}=...)"))


def _job_name(option: str, name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{option}={shown(name)}: expected a str")
    return bare_text(check_job_name(name))


def check_function(function: Any) -> None:
    """Raise DeclarationError unless `function` can be a job. A method, a generator or an async function in a plain wrapper cannot."""
    code: Any = getattr(function, "__func__", function)
    if isinstance(function, staticmethod):
        raise DeclarationError(f"@job on {location(function)}: write @staticmethod above @job, so that @job gets the function itself")
    if inspect.ismethod(function) or isinstance(function, classmethod) or _is_in_a_class(function):
        raise DeclarationError(
            f"@job on {location(code)}: methods cannot be jobs, because a worker has no object to call them on; "
            "make it a module-level function, and pass the object's data or id as an argument"
        )
    if not inspect.isroutine(function) or inspect.isbuiltin(function):
        hint = f"; to set the name, write @job(name={function!r})" if isinstance(function, str) else ""
        raise DeclarationError(f"@job takes a function, not {shown(function)}{hint}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DeclarationError(f"@job on {location(function)}: a job cannot yield; return a list, or report with ctx.progress()")
    if inspect.iscoroutinefunction(inspect.unwrap(function)) and not inspect.iscoroutinefunction(function):
        raise DeclarationError(
            f"@job on {location(function)}: a decorator wraps this async function in a plain one, so nothing would await it. "
            "Write its wrapper with `async def` and `await`, or without functools.wraps if it runs the function to its end"
        )


def _is_in_a_class(function: object) -> bool:
    """Return True for a function that is defined in a class and takes self or cls. Other functions in a class need no object."""
    around, _, _ = getattr(function, "__qualname__", "").rpartition(".")
    if not inspect.isfunction(function) or not around or around.endswith("<locals>"):
        return False
    return next(iter(inspect.signature(function).parameters), None) in ("self", "cls")


def name_of(function: Callable[..., Any]) -> str:
    """Return a job's default name: its module and qualified name. Raises DeclarationError for a lambda or a function inside a function."""
    if "<locals>" in function.__qualname__ or "<lambda>" in function.__qualname__:
        raise DeclarationError(f"{location(function)}: a worker cannot import a lambda or a function inside a function; set name=")
    return check_job_name(f"{_module_of(function)}.{function.__qualname__}")


def _module_of(function: Callable[..., Any]) -> str:
    """Return the name of the module from which a worker imports a function. For a script, this is its dotted path, relative to the nearest
    folder on sys.path, not counting the script's own, or to the current folder."""
    if function.__module__ not in RUN_AS_MAIN:
        return function.__module__
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    spec = scope.get("__spec__")
    if spec is not None and spec.name not in RUN_AS_MAIN:  # python -m package.module
        return str(spec.name)
    file, here = Path(scope.get("__file__") or "__main__.py").resolve(), Path.cwd().resolve()
    folders = {Path(entry).resolve() for entry in sys.path if entry} - {file.parent} | {here}
    above = [folder for folder in folders if file.is_relative_to(folder)]
    relative = file.relative_to(max(above, key=lambda folder: len(folder.parts))) if above else Path(file.name)
    return ".".join(relative.with_suffix("").parts)


# Names of the main module. In child processes, multiprocessing and taskflow use the second one.
RUN_AS_MAIN: Final = ("__main__", "__mp_main__")


def mode_for(function: Callable[..., Any], asked: object) -> RunsIn:
    """Return the requested mode of execution, or the default. Raises ValueError or DeclarationError if it doesn't fit the function."""
    own: RunsIn = "loop" if inspect.iscoroutinefunction(function) else "thread"
    if asked is None or asked == own:
        return own
    if not isinstance(asked, str) or asked not in get_args(RunsIn):
        raise ValueError(
            f'runs_in={asked!r}: expected "process", or "{own}", the default of {"an async" if own == "loop" else "a plain"} function'
        )
    if asked != "process":
        why_not = "an async function runs in the event loop; to run it in a thread, make it a plain function"
        if own == "thread":
            why_not = "a plain function would block the event loop; it runs in a thread unless you make it async"
        raise ValueError(f'runs_in="{asked}": {why_not}, or use runs_in="process"')
    if "<locals>" in function.__qualname__ or "<lambda>" in function.__qualname__:
        raise ValueError('runs_in="process": a child process imports the function from its module; define it there, not inside a function')
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    if function.__module__ in RUN_AS_MAIN and scope.get("__spec__") is None and "__file__" not in scope:
        raise DeclarationError(
            f'@job(runs_in="process") on {function.__qualname__}: a child process must import the module of the job. Code in '
            "an interpreter, a notebook or python -c has no module; move it into a file, and import it"
        )
    return cast(RunsIn, asked)
