"""The set-up of a child process by the application: its `child_initializer`, then its `child_lifespan`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
from functools import partial
from typing import Any, NoReturn

from taskflow.app.app import default_app
from taskflow.model.errors import ConfigurationError, TaskflowError
from taskflow.worker.children.main_thread import MainThreadCalls
from taskflow.worker.children.messages import CallRefused, Hello
from taskflow.worker.run_errors import failure_of
from taskflow.worker.thread_pool import carried


class Lifespan:
    """Begins once, when the module of the first job has been imported, because that may configure the application.

    `state`  the value of `ctx.state`
    """

    def __init__(self, hello: Hello, calls: MainThreadCalls) -> None:
        self.state: Any = NoState() if hello.has_lifespan else None
        self._hooks = hello.hooks
        self._calls = calls
        self._leave: Callable[[], Awaitable[Any]] | None = None
        self._has_begun = False
        self._held: _Held | None = None

    @property
    def is_intact(self) -> bool:
        """False if the async lifespan has been left early: a job may cancel every task of its loop."""
        return self._held is None or not self._held.has_ended

    async def begin(self) -> CallRefused | None:
        """Call the initializer and enter the lifespan, if this has not been done yet. If one of them fails, return the reason."""
        if self._has_begun:
            return None
        self._has_begun = True
        name = "its set-up"
        try:
            settings = default_app().settings
            for name in self._hooks:
                if getattr(settings, name) is None:
                    raise ConfigurationError(
                        f"no module that a child process imports configures it: call configure({name}=...) in the module of the jobs, "
                        "or in one that it imports"
                    )
            name = "child_initializer"
            if settings.child_initializer is not None:
                await self._calls.run(settings.child_initializer)
            name = "child_lifespan"
            if settings.child_lifespan is not None:
                await self._enter(await self._calls.run(settings.child_lifespan))
        except BaseException as error:
            failure = failure_of(error, 1)
            return CallRefused(f"{name} has failed in a child process: {failure.type}: {failure.message}", failure.traceback)
        return None

    async def end(self) -> None:
        """Leave the lifespan, if it was entered. An error is printed to stderr, which the worker logs."""
        if self._leave is None:
            return
        try:
            await self._leave()
        except BaseException as error:
            print("child_lifespan has failed at its end:", failure_of(error, 1).traceback, file=sys.stderr, flush=True)

    async def _enter(self, lifespan: Any) -> None:
        if isinstance(lifespan, AbstractAsyncContextManager):
            self._held = held = _Held(lifespan)
            self.state = await self._calls.run_async(held.enter)
            self._leave = partial(self._calls.run_async, held.leave)
        elif isinstance(lifespan, AbstractContextManager):
            stack = ExitStack()
            self.state = await self._calls.run(partial(stack.enter_context, lifespan))
            self._leave = partial(self._calls.run, stack.close)
        else:
            raise ConfigurationError(f"it returned {lifespan!r}: expected a context manager, or an async one")


class _Held:
    """Holds an async context manager in a separate task, because it must be left in the task that has entered it."""

    def __init__(self, lifespan: AbstractAsyncContextManager[Any]) -> None:
        self._lifespan = lifespan

    async def enter(self) -> Any:
        self._is_leaving = asyncio.Event()
        entered = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold(entered))
        return await entered

    @property
    def has_ended(self) -> bool:
        return self._task.done() or self._task.cancelling() > 0

    async def leave(self) -> None:
        self._is_leaving.set()
        await self._task

    async def _hold(self, entered: asyncio.Future[Any]) -> None:
        try:
            async with self._lifespan as state:
                entered.set_result(state)
                await self._is_leaving.wait()
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(carried(error))


class NoState:
    """Takes the place of `ctx.state` if only the worker's process has one, and raises TaskflowError when it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _say_so()

    def __getitem__(self, key: object) -> Any:
        _say_so()

    def __bool__(self) -> bool:
        _say_so()

    def __repr__(self) -> str:
        return "<no ctx.state in a child process>"


def _say_so() -> NoReturn:
    raise TaskflowError(
        'ctx.state exists only in the worker\'s process, and a job with runs_in="process" runs in another: give child processes '
        "a state with configure(child_lifespan=...), or create what it needs in the job itself"
    )
