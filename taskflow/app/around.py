"""What surrounds the call of a job's function: the context managers of `around=` and of middleware, and its dependencies."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, ExitStack
from types import TracebackType
from typing import Any, TypeVar, cast, overload

import msgspec

from taskflow.app.context import JobContext, takes_context
from taskflow.app.options import Around
from taskflow.model.errors import DeclarationError
from taskflow.model.printable import shown

T = TypeVar("T")


class Dependency(msgspec.Struct, frozen=True):
    """The default of a parameter whose value is made for each run, by this function."""

    function: Callable[..., Any]

    def __repr__(self) -> str:
        return f"depends({_name(self.function)})"


@overload
def depends(function: Callable[..., AsyncGenerator[T, Any]], /) -> T: ...
@overload
def depends(function: Callable[..., Generator[T, Any, Any]], /) -> T: ...
@overload
def depends(function: Callable[..., AsyncIterator[T]], /) -> T: ...
@overload
def depends(function: Callable[..., Iterator[T]], /) -> T: ...
@overload
def depends(function: Callable[..., AbstractAsyncContextManager[T]], /) -> T: ...
@overload
def depends(function: Callable[..., AbstractContextManager[T]], /) -> T: ...
@overload
def depends(function: Callable[..., Awaitable[T]], /) -> T: ...
@overload
def depends(function: Callable[..., T], /) -> T: ...
def depends(function: Callable[..., Any], /) -> Any:
    """Declare that each run of a job makes the value of a parameter: ``async def bill(order_id: int, db: Session = depends(get_session))``.

    `function` returns the value or yields it once; it may be async if the job is. Code after the ``yield`` runs when the job's function has
    ended, in reverse order, before the run is settled. An error of the job is raised at the ``yield``, and stays the run's error whatever
    the code there does. The function may have dependencies itself, and a first parameter annotated with `JobContext`. Within one run, each
    function is called once, so all that depend on it share its value.

    Callers do not pass the parameter: `delay` refuses it. Raises DeclarationError if `function` takes other arguments without a default.
    """
    _plan_of(function)
    return Dependency(function)


class _Plan(msgspec.Struct, frozen=True):
    """How to call a dependency's function. `yields` says that it has code to run when the job's function has ended."""

    takes_context: bool
    needs: dict[str, Dependency]
    is_async: bool
    yields: bool
    call: Callable[..., Any]


@functools.lru_cache(maxsize=1_000)
def _plan_of(function: Callable[..., Any]) -> _Plan:
    if not callable(function):
        raise DeclarationError(f"depends({shown(function)}): expected a function")
    inner = inspect.unwrap(function)
    if not inspect.isroutine(inner) and not inspect.isclass(inner):
        inner = type(inner).__call__
    is_generator, is_async_generator = inspect.isgeneratorfunction(inner), inspect.isasyncgenfunction(inner)
    call = function
    if inspect.isgeneratorfunction(function):
        call = contextlib.contextmanager(function)
    elif inspect.isasyncgenfunction(function):
        call = contextlib.asynccontextmanager(function)
    has_context = takes_context(function)
    parameters = list(inspect.signature(function).parameters.values())[int(has_context) :]
    for each in parameters:
        is_open = each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if each.default is each.empty and not is_open:
            raise DeclarationError(
                f"depends({_name(function)}): its parameter {each.name} has no default; a dependency gets the run's context as a first "
                "parameter annotated with JobContext, and other values from depends()"
            )
    return _Plan(
        takes_context=has_context,
        needs=dependencies_of(parameters),
        is_async=is_async_generator or inspect.iscoroutinefunction(inner),
        yields=is_generator or is_async_generator,
        call=call,
    )


def dependencies_of(parameters: Sequence[inspect.Parameter]) -> dict[str, Dependency]:
    """Return the dependencies among parameters, by name. Raises DeclarationError for one that cannot be given by name."""
    found = dict[str, Dependency]()
    for number, each in enumerate(parameters):
        if isinstance(each.default, Dependency):
            found[each.name] = each.default
            given = [other for other in parameters[number + 1 :] if not isinstance(other.default, Dependency)]
            if each.kind is each.POSITIONAL_ONLY or any(other.kind not in (other.KEYWORD_ONLY, other.VAR_KEYWORD) for other in given):
                raise DeclarationError(f"{each.name} = {each.default!r} stands before arguments of callers: put it last, or behind a *")
    return found


def refuse_async(arounds: Sequence[Around], dependencies: Mapping[str, Dependency]) -> None:
    """Raise TypeError for what a plain function cannot be surrounded by, because no event loop runs in its thread."""
    for each in arounds:
        is_async_class = inspect.isclass(each) and hasattr(each, "__aenter__") and not hasattr(each, "__enter__")
        if is_async_class or inspect.isasyncgenfunction(inspect.unwrap(each)):
            raise TypeError(f"around=[... {_name(each)} ...] is async, and the job is a plain function; make either one like the other")
    for name, dependency in dependencies.items():
        plan = _plan_of(dependency.function)
        if plan.is_async:
            raise TypeError(f"{name} = {dependency!r} is async, and the job is a plain function; make either one like the other")
        refuse_async((), plan.needs)


Overrides = Mapping[Callable[..., Any], Callable[..., Any]]
"""The functions that a test puts in place of dependencies."""


def surrounded(
    function: Callable[..., Any], arounds: Sequence[Around], dependencies: Mapping[str, Dependency], overrides: Overrides, *, is_async: bool
) -> Callable[..., Any] | None:
    """Return a function of a run's context and the arguments, which calls the job's function within what surrounds it, or None."""

    def call(context: JobContext, /, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for around in arounds:
                stack.enter_context(_plain(around, around(context)))
            values = _Values(context, overrides)
            given = {name: values.get(stack, each) for name, each in dependencies.items() if name not in kwargs}
            return function(*args, **kwargs, **given)

    async def call_async(context: JobContext, /, *args: Any, **kwargs: Any) -> Any:
        async with AsyncExitStack() as stack:
            for around in arounds:
                entered = around(context)
                if hasattr(entered, "__aenter__"):
                    await stack.enter_async_context(cast(AbstractAsyncContextManager[Any], entered))
                else:
                    stack.enter_context(_plain(around, entered))
            values = _Values(context, overrides)
            given = {name: await values.get_async(stack, each) for name, each in dependencies.items() if name not in kwargs}
            return await function(*args, **kwargs, **given)

    return (call_async if is_async else call) if arounds or dependencies else None


def _plain(around: Around, entered: object) -> AbstractContextManager[Any]:
    if not hasattr(entered, "__enter__"):
        kind = "an async context manager, and the job is a plain function" if hasattr(entered, "__aenter__") else f"{shown(entered)}"
        raise TypeError(f"around {_name(around)} returned {kind}: expected a context manager")
    return cast(AbstractContextManager[Any], entered)


class _Values:
    """The values of one run's dependencies. Each function is called once."""

    def __init__(self, context: JobContext, overrides: Overrides) -> None:
        self._context = context
        self._overrides = overrides
        self._made: dict[Callable[..., Any], Any] = {}

    def get(self, stack: ExitStack, dependency: Dependency) -> Any:
        if dependency.function in self._made:
            return self._made[dependency.function]
        plan = _plan_of(self._overrides.get(dependency.function, dependency.function))
        given = {name: self.get(stack, each) for name, each in plan.needs.items()}
        made = plan.call(*self._first(plan), **given)
        if plan.is_async:
            raise TypeError(f"{dependency!r} is overridden by an async function, and the job is a plain one")
        if plan.yields:
            made = _enter(stack, made)
        self._made[dependency.function] = made
        return made

    async def get_async(self, stack: AsyncExitStack, dependency: Dependency) -> Any:
        if dependency.function in self._made:
            return self._made[dependency.function]
        plan = _plan_of(self._overrides.get(dependency.function, dependency.function))
        given = {name: await self.get_async(stack, each) for name, each in plan.needs.items()}
        made = plan.call(*self._first(plan), **given)
        if plan.yields:
            made = await _enter_async(stack, made) if plan.is_async else _enter(stack, made)
        elif plan.is_async:
            made = await made
        self._made[dependency.function] = made
        return made

    def _first(self, plan: _Plan) -> tuple[JobContext, ...]:
        return (self._context,) if plan.takes_context else ()


# A dependency cannot suppress the job's error, because the run would seem to have succeeded.


def _enter(stack: ExitStack | AsyncExitStack, entered: AbstractContextManager[Any]) -> Any:
    def leave(kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        entered.__exit__(kind, error, traceback)

    value = entered.__enter__()
    stack.push(leave)
    return value


async def _enter_async(stack: AsyncExitStack, entered: AbstractAsyncContextManager[Any]) -> Any:
    async def leave(kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await entered.__aexit__(kind, error, traceback)

    value = await entered.__aenter__()
    stack.push_async_exit(leave)
    return value


def _name(function: object) -> str:
    return getattr(function, "__qualname__", None) or shown(function)
