"""Calls a job's function inside the context managers of `around=` and of middleware, with the values of its dependencies."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    _AsyncGeneratorContextManager,
    _GeneratorContextManager,
)
from types import TracebackType
from typing import IO, Any, NoReturn, TypeVar, cast, overload

import msgspec

from taskflow.app.context import JobContext, takes_context
from taskflow.app.options import Around
from taskflow.model.errors import DeclarationError, JobStopping
from taskflow.model.printable import shown

T = TypeVar("T")
F = TypeVar("F", bound=IO[Any])


class Dependency(msgspec.Struct, frozen=True, eq=False):
    """The default of a parameter. In each run, `function` makes the parameter's value.

    `takes_context`  True if the function's first parameter gets the run's `JobContext`
    `needs`          the function's own dependencies, by parameter name
    `is_async`       True if only an async job can use it, as far as that's known before the function is called
    """

    function: Callable[..., Any]
    takes_context: bool
    needs: dict[str, Dependency]
    is_async: bool

    def __repr__(self) -> str:
        return f"depends({_name(self.function)})"


@overload
def depends(function: Callable[..., F], /) -> F: ...
@overload
def depends(function: Callable[..., AsyncGenerator[T, Any]], /) -> T: ...
@overload
def depends(function: Callable[..., Generator[T, Any, Any]], /) -> T: ...
@overload
def depends(function: Callable[..., AsyncIterator[T]], /) -> T: ...
@overload
def depends(function: Callable[..., Iterator[T]], /) -> T: ...
@overload
def depends(function: Callable[..., _AsyncGeneratorContextManager[T]], /) -> T: ...
@overload
def depends(function: Callable[..., _GeneratorContextManager[T]], /) -> T: ...
@overload
def depends(function: Callable[..., Awaitable[T]], /) -> T: ...
@overload
def depends(function: Callable[..., T], /) -> T: ...
def depends(function: Callable[..., Any], /) -> Any:
    """Declare a parameter whose value is made in each run: ``async def bill(order_id: int, db: Session = depends(get_session))``.

    `function` returns the value or yields it once; it may be async if the job is. When the job's function has ended, the code after each
    ``yield`` runs, in reverse order, before the run is settled. If the job fails, its error is raised at the ``yield``, and remains the
    run's error, whatever the code after it does or raises. The function may have dependencies itself, and a first parameter annotated with
    `JobContext`. Each function is called once in a run, and everything that depends on it shares the value.

    Callers do not pass the parameter: `delay` refuses it. Raises DeclarationError if `function` has other parameters without a default.
    """
    return dependency_of(function)


def dependency_of(function: Callable[..., Any]) -> Dependency:
    if not callable(function):
        raise DeclarationError(f"depends({shown(function)}): expected a function")
    inner = _innermost(function)
    has_context, parameters = False, list[inspect.Parameter]()
    with contextlib.suppress(ValueError):  # a built-in class without a signature, such as dict
        has_context = takes_context(function)
        parameters = list(inspect.signature(function).parameters.values())[int(has_context) :]
    for each in parameters:
        _refuse_annotated(each)
        is_open = each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if (each.default is each.empty and not is_open) or (each.kind is each.POSITIONAL_ONLY and isinstance(each.default, Dependency)):
            raise DeclarationError(
                f"depends({_name(function)}): its parameter {each.name} has no default, or cannot be passed by name; a dependency gets the "
                "run's context through a first parameter annotated with JobContext, and other values through depends()"
            )
    needs = {each.name: each.default for each in parameters if isinstance(each.default, Dependency)}
    return Dependency(function, has_context, needs, inspect.isasyncgenfunction(inner) or inspect.iscoroutinefunction(inner))


def _innermost(function: Callable[..., Any]) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    inner: Any = inspect.unwrap(function)
    return inner if inspect.isroutine(inner) or inspect.isclass(inner) else type(inner).__call__


def dependencies_of(parameters: Sequence[inspect.Parameter]) -> dict[str, Dependency]:
    """Return the dependencies among parameters, by name. Raises DeclarationError if a caller's argument could take a dependency's place,
    or if a dependency is written in an annotation."""
    found = dict[str, Dependency]()
    for number, each in enumerate(parameters):
        _refuse_annotated(each)
        if isinstance(each.default, Dependency):
            found[each.name] = each.default
            given = [other for other in parameters[number + 1 :] if not isinstance(other.default, Dependency)]
            if each.kind is each.POSITIONAL_ONLY or any(other.kind not in (other.KEYWORD_ONLY, other.VAR_KEYWORD) for other in given):
                raise DeclarationError(f"{each.name} = {each.default!r} precedes arguments that callers pass: put it last, or after a *")
    return found


def _refuse_annotated(parameter: inspect.Parameter) -> None:
    """Raise DeclarationError for a dependency in an annotation: type checkers would demand the argument from every caller."""
    annotation = parameter.annotation
    is_written = isinstance(annotation, str) and "Annotated[" in annotation and "depends(" in annotation
    if is_written or any(isinstance(each, Dependency) for each in getattr(annotation, "__metadata__", ())):
        raise DeclarationError(f"{parameter.name}: write a dependency as a default, as in {parameter.name}: Session = depends(get_session)")


def refuse_async(arounds: Sequence[Around], dependencies: Mapping[str, Dependency]) -> None:
    """Raise TypeError for an async context manager or dependency of a plain function, whose thread has no event loop."""
    for each in arounds:
        inner = _innermost(each)
        is_async_class = inspect.isclass(inner) and hasattr(inner, "__aenter__") and not hasattr(inner, "__enter__")
        if is_async_class or inspect.isasyncgenfunction(inner):
            raise TypeError(f"around=[... {_name(each)} ...] is async, and the job is a plain function; make both async or both plain")
    for name, dependency in dependencies.items():
        if dependency.is_async:
            raise TypeError(f"{name} = {dependency!r} is async, and the job is a plain function; make both async or both plain")
        refuse_async((), dependency.needs)


Overrides = Sequence[tuple[Callable[..., Any], Dependency]]
"""Pairs of a dependency's function and the replacement that a test gives for it. The last replacement wins."""


def surrounded(
    function: Callable[..., Any], arounds: Sequence[Around], dependencies: Mapping[str, Dependency], overrides: Overrides, *, is_async: bool
) -> Callable[..., Any] | None:
    """Return a function that takes a run's context and arguments, and calls the job's function inside its context managers, with the
    values of its dependencies. Return None if the job has neither context managers nor dependencies."""

    def call(context: JobContext, /, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for around in arounds:
                stack.enter_context(_plain(around, around(context)))
            given, making = dict[str, Any](), _Values(context, overrides, stack).by_name(dependencies)
            try:
                making.send(None)
            except StopIteration as end:
                given = end.value
            return function(*args, **kwargs, **given)

    async def call_async(context: JobContext, /, *args: Any, **kwargs: Any) -> Any:
        async with AsyncExitStack() as stack:
            for around in arounds:
                entered = around(context)
                if hasattr(entered, "__aenter__"):
                    await stack.enter_async_context(cast(AbstractAsyncContextManager[Any], entered))
                else:
                    stack.enter_context(_plain(around, entered))
            return await function(*args, **kwargs, **await _Values(context, overrides, stack).by_name(dependencies))

    return (call_async if is_async else call) if arounds or dependencies else None


def _plain(around: Around, entered: object) -> AbstractContextManager[Any]:
    if not hasattr(entered, "__enter__"):
        kind = "an async context manager, and the job is a plain function" if hasattr(entered, "__aenter__") else f"{shown(entered)}"
        raise TypeError(f"around {_name(around)} returned {kind}: expected a context manager")
    return cast(AbstractContextManager[Any], entered)


class _Values:
    """Computes the values of one run's dependencies, calling each function once. Nothing is awaited if the job's function is plain."""

    def __init__(self, context: JobContext, overrides: Overrides, stack: ExitStack | AsyncExitStack) -> None:
        self._context = context
        self._overrides = overrides
        self._stack = stack
        self._made: list[tuple[Dependency, Any]] = []

    async def by_name(self, dependencies: Mapping[str, Dependency], fakes: tuple[Dependency, ...] = ()) -> dict[str, Any]:
        return {name: await self._value(each, fakes) for name, each in dependencies.items()}

    async def _value(self, wanted: Dependency, fakes: tuple[Dependency, ...]) -> Any:
        for function, fake in reversed(self._overrides):
            if function == wanted.function and fake not in fakes:  # a replacement may depend on the original
                wanted, fakes = fake, (*fakes, fake)
                break
        for known, value in self._made:
            if known is wanted or known.function == wanted.function:
                return value
        first = (self._context,) if wanted.takes_context else ()
        made = wanted.function(*first, **await self.by_name(wanted.needs, fakes))
        if isinstance(self._stack, AsyncExitStack):
            made = await made if inspect.isawaitable(made) else made
            if inspect.isasyncgen(generator := made):
                made = contextlib.asynccontextmanager(lambda: generator)()
            is_async = isinstance(made, _AsyncGeneratorContextManager)
            value = await _entered_async(self._stack, made, wanted) if is_async else _entered(self._stack, made, wanted)
        elif inspect.isawaitable(made) or inspect.isasyncgen(made) or isinstance(made, _AsyncGeneratorContextManager):
            if inspect.iscoroutine(made):
                made.close()
            raise TypeError(f"depends({_name(wanted.function)}) is async, and the job is a plain function")
        else:
            value = _entered(self._stack, made, wanted)
        self._made.append((wanted, value))
        return value


# A dependency cannot suppress or replace the job's error: otherwise a failed run could count as a success, or a Discard become a retry.


def _entered(stack: ExitStack | AsyncExitStack, made: Any, dependency: Dependency) -> Any:
    """Return a dependency's value: `made` itself or, for a generator, what it yields. Closing `stack` runs the code after the yield."""
    if inspect.isgenerator(generator := made):
        made = contextlib.contextmanager(lambda: generator)()
    if not isinstance(made, _GeneratorContextManager):
        return made
    entered: AbstractContextManager[Any] = made

    def leave(kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            entered.__exit__(kind, error, traceback)
        except JobStopping:
            raise  # the run itself is being asked to stop
        except BaseException as raised:
            _stay(error, raised, dependency)

    try:
        value = entered.__enter__()
    except RuntimeError as raised:
        _raise(raised, dependency)
    stack.push(leave)
    return value


async def _entered_async(stack: AsyncExitStack, entered: AbstractAsyncContextManager[Any], dependency: Dependency) -> Any:
    async def leave(kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            await entered.__aexit__(kind, error, traceback)
        except GeneratorExit:
            raise  # the run's coroutine is being closed
        except BaseException as raised:
            task = asyncio.current_task()
            if isinstance(raised, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # the run itself is cancelled, and not just a task of the dependency
            _stay(error, raised, dependency)

    try:
        value = await entered.__aenter__()
    except RuntimeError as raised:
        _raise(raised, dependency)
    stack.push_async_exit(leave)
    return value


def _stay(error: BaseException | None, raised: BaseException, dependency: Dependency) -> None:
    """Add to the job's error a note of what a dependency raised during cleanup. If the job raised no error, raise the dependency's."""
    if error is None:
        _raise(raised, dependency)
    if raised is not error:
        error.add_note(f"{dependency!r} raised another error during cleanup: {shown(raised)}")


def _raise(raised: BaseException, dependency: Dependency) -> NoReturn:
    """Raise a dependency's error. If it is contextlib's error about a generator that yields twice or never, add the dependency's name."""
    if type(raised) is RuntimeError and str(raised).startswith("generator didn't "):
        raise RuntimeError(f"{dependency!r} must yield once: {raised}")
    raise raised


def _name(function: object) -> str:
    return getattr(function, "__qualname__", None) or shown(function)
