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
from typing import IO, Any, TypeVar, cast, overload

import msgspec

from taskflow.app.context import JobContext, takes_context
from taskflow.app.options import Around
from taskflow.model.errors import DeclarationError
from taskflow.model.printable import shown

T = TypeVar("T")
F = TypeVar("F", bound=IO[Any])


class Dependency:
    """The default of a parameter whose value is made for each run, by `plan`."""

    __slots__ = ("plan",)

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __repr__(self) -> str:
        return f"depends({_name(self.plan.function)})"


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
    """Declare that each run of a job makes the value of a parameter: ``async def bill(order_id: int, db: Session = depends(get_session))``.

    `function` returns the value or yields it once; it may be async if the job is. Code after the ``yield`` runs when the job's function has
    ended, in reverse order, before the run is settled. An error of the job is raised at the ``yield``, and stays the run's error whatever
    the code there does or raises. The function may have dependencies itself, and a first parameter annotated with `JobContext`. Within one
    run, each function is called once, so all that depend on it share its value.

    Callers do not pass the parameter: `delay` refuses it. Raises DeclarationError if `function` takes other arguments without a default.
    """
    return Dependency(plan_of(function))


class Plan(msgspec.Struct, frozen=True):
    """How to call a dependency's function. `is_async` is True if it is known before the call that only an async job can use it."""

    function: Callable[..., Any]
    takes_context: bool
    needs: dict[str, Dependency]
    is_async: bool


def plan_of(function: Callable[..., Any]) -> Plan:
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
                f"depends({_name(function)}): its parameter {each.name} has no default that can be given by name; a dependency gets the "
                "run's context as a first parameter annotated with JobContext, and other values from depends()"
            )
    needs = {each.name: each.default for each in parameters if isinstance(each.default, Dependency)}
    return Plan(function, has_context, needs, inspect.isasyncgenfunction(inner) or inspect.iscoroutinefunction(inner))


def _innermost(function: Callable[..., Any]) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    inner: Any = inspect.unwrap(function)
    return inner if inspect.isroutine(inner) or inspect.isclass(inner) else type(inner).__call__


def dependencies_of(parameters: Sequence[inspect.Parameter]) -> dict[str, Dependency]:
    """Return the dependencies among parameters, by name. Raises DeclarationError for one that cannot be given by name."""
    found = dict[str, Dependency]()
    for number, each in enumerate(parameters):
        _refuse_annotated(each)
        if isinstance(each.default, Dependency):
            found[each.name] = each.default
            given = [other for other in parameters[number + 1 :] if not isinstance(other.default, Dependency)]
            if each.kind is each.POSITIONAL_ONLY or any(other.kind not in (other.KEYWORD_ONLY, other.VAR_KEYWORD) for other in given):
                raise DeclarationError(f"{each.name} = {each.default!r} stands before arguments of callers: put it last, or behind a *")
    return found


def _refuse_annotated(parameter: inspect.Parameter) -> None:
    """Raise DeclarationError for a dependency in an annotation. A type checker would ask every caller for the argument."""
    annotation = parameter.annotation
    is_written = isinstance(annotation, str) and "Annotated[" in annotation and "depends(" in annotation
    if is_written or any(isinstance(each, Dependency) for each in getattr(annotation, "__metadata__", ())):
        raise DeclarationError(f"{parameter.name}: a dependency is a default, as in {parameter.name}: Session = depends(get_session)")


def refuse_async(arounds: Sequence[Around], dependencies: Mapping[str, Dependency]) -> None:
    """Raise TypeError for what a plain function cannot be surrounded by, because no event loop runs in its thread."""
    for each in arounds:
        inner = _innermost(each)
        is_async_class = inspect.isclass(inner) and hasattr(inner, "__aenter__") and not hasattr(inner, "__enter__")
        if is_async_class or inspect.isasyncgenfunction(inner):
            raise TypeError(f"around=[... {_name(each)} ...] is async, and the job is a plain function; make either one like the other")
    for name, dependency in dependencies.items():
        if dependency.plan.is_async:
            raise TypeError(f"{name} = {dependency!r} is async, and the job is a plain function; make either one like the other")
        refuse_async((), dependency.plan.needs)


Overrides = Sequence[tuple[Callable[..., Any], Plan]]
"""Functions of dependencies, with what a test calls in their place. The last one counts."""


def surrounded(
    function: Callable[..., Any], arounds: Sequence[Around], dependencies: Mapping[str, Dependency], overrides: Overrides, *, is_async: bool
) -> Callable[..., Any] | None:
    """Return a function of a run's context and the arguments, which calls the job's function within what surrounds it, or None."""

    def call(context: JobContext, /, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for around in arounds:
                stack.enter_context(_plain(around, around(context)))
            values = _Values(context, overrides)
            given = {name: values.get(stack, each) for name, each in dependencies.items()}
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
            given = {name: await values.get_async(stack, each) for name, each in dependencies.items()}
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
        self._made: list[tuple[Plan, Any]] = []

    def get(self, stack: ExitStack, dependency: Dependency, fakes: tuple[Plan, ...] = ()) -> Any:
        plan, fakes = self._chosen(dependency, fakes)
        if (known := self._known(plan)) is not None:
            return known[1]
        made = plan.function(*self._first(plan), **{name: self.get(stack, each, fakes) for name, each in plan.needs.items()})
        if inspect.isawaitable(made) or inspect.isasyncgen(made) or isinstance(made, _AsyncGeneratorContextManager):
            if inspect.iscoroutine(made):
                made.close()
            raise TypeError(f"depends({_name(plan.function)}) is async, and the job is a plain function")
        return self._keep(plan, _entered(stack, made))

    async def get_async(self, stack: AsyncExitStack, dependency: Dependency, fakes: tuple[Plan, ...] = ()) -> Any:
        plan, fakes = self._chosen(dependency, fakes)
        if (known := self._known(plan)) is not None:
            return known[1]
        made = plan.function(*self._first(plan), **{name: await self.get_async(stack, each, fakes) for name, each in plan.needs.items()})
        if inspect.isawaitable(made):
            made = await made
        if inspect.isasyncgen(generator := made):
            made = contextlib.asynccontextmanager(lambda: generator)()
        is_async = isinstance(made, _AsyncGeneratorContextManager)
        return self._keep(plan, await _entered_async(stack, made) if is_async else _entered(stack, made))

    def _chosen(self, dependency: Dependency, fakes: tuple[Plan, ...]) -> tuple[Plan, tuple[Plan, ...]]:
        """Return the plan in place of a dependency's, and the fakes within which it is called. A fake may depend on the original."""
        for function, fake in reversed(self._overrides):
            if function == dependency.plan.function and fake not in fakes:
                return fake, (*fakes, fake)
        return dependency.plan, fakes

    def _known(self, plan: Plan) -> tuple[Plan, Any] | None:
        return next((known for known in self._made if known[0] is plan or known[0].function == plan.function), None)

    def _keep(self, plan: Plan, value: Any) -> Any:
        self._made.append((plan, value))
        return value

    def _first(self, plan: Plan) -> tuple[JobContext, ...]:
        return (self._context,) if plan.takes_context else ()


# A dependency cannot suppress or replace the job's error. The run would seem to have succeeded, or a Discard become a retry.


def _entered(stack: ExitStack | AsyncExitStack, made: Any) -> Any:
    """Return a dependency's value: that which a generator yields, or `made` itself."""
    if inspect.isgenerator(generator := made):
        made = contextlib.contextmanager(lambda: generator)()
    if not isinstance(made, _GeneratorContextManager):
        return made
    entered: AbstractContextManager[Any] = made

    def leave(kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            entered.__exit__(kind, error, traceback)
        except Exception as raised:
            _stay(error, raised)

    value = entered.__enter__()
    stack.push(leave)
    return value


async def _entered_async(stack: AsyncExitStack, entered: AbstractAsyncContextManager[Any]) -> Any:
    async def leave(kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            await entered.__aexit__(kind, error, traceback)
        except (Exception, asyncio.CancelledError) as raised:
            task = asyncio.current_task()
            if not isinstance(raised, Exception) and task is not None and task.cancelling():
                raise  # the run itself is cancelled, and not just a task of the dependency
            _stay(error, raised)

    value = await entered.__aenter__()
    stack.push_async_exit(leave)
    return value


def _stay(error: BaseException | None, raised: BaseException) -> None:
    """Let the job's error stay the run's error, with a note of what a dependency raised at its end."""
    if error is None:
        raise raised
    if raised is not error:
        error.add_note(f"A dependency raised another error at its end: {type(raised).__name__}: {raised}")


def _name(function: object) -> str:
    return getattr(function, "__qualname__", None) or shown(function)
