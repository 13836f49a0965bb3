"""The main program of a child process. It imports the application once, then runs the jobs that the worker sends, one at a time.

The main thread calls the jobs' functions, because some libraries work only there. A second thread runs an event loop for everything else:
reads from the worker, decodes arguments, encodes results, and notices when the worker is gone."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import importlib
import logging
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
from functools import partial
from types import ModuleType
from typing import Any, Final

from taskflow.app.app import default_app
from taskflow.app.job_type import AnyJob
from taskflow.model.errors import ConfigurationError, TaskflowError
from taskflow.worker.children import syscalls
from taskflow.worker.children.executor import ChildExecutor, MainThreadCalls
from taskflow.worker.children.messages import CallRefused, Finished, Handshake, Import, Message, Ready, Run, Stop, Unpacker, pack
from taskflow.worker.lease_table import HeldLease
from taskflow.worker.run_errors import failure_of
from taskflow.worker.thread_pool import carried

_EXIT_TIMEOUT: Final = 4.0  # seconds to leave the lifespan and exit after the last job


def main(descriptor: int) -> None:
    """Run the child process. `descriptor` is its end of the socket to the worker."""
    syscalls.end_with_parent()
    syscalls.die_before_parent()
    os.set_inheritable(descriptor, False)
    for number in syscalls.HANDLED:
        signal.signal(number, _leave_it_to_the_worker)
    syscalls.keep_handlers_from_forks(lambda handler: handler is _leave_it_to_the_worker)
    faulthandler.enable(all_threads=False)  # shows a crash of this process in the log and in the job's error
    for stream in (sys.stdout, sys.stderr):  # output appears at once, while the job runs
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]  # before any code can replace them
    calls = MainThreadCalls()
    connection = WorkerConnection(socket.socket(fileno=descriptor), calls)
    threading.Thread(target=connection.serve, name="taskflow-child", daemon=True).start()
    calls.make()


def _leave_it_to_the_worker(number: int, frame: object) -> None:
    """Do nothing, because the worker lets runs finish. Unlike SIG_IGN, this handler isn't inherited by programs started from here."""


class WorkerConnection:
    """Talks to the worker in a separate thread with its own event loop."""

    def __init__(self, end: socket.socket, calls: MainThreadCalls) -> None:
        self._end = end
        self._calls = calls
        self._is_busy = False
        self._run: HeldLease | None = None
        self._lifespan: Lifespan | None = None

    def serve(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException:  # a job has closed this thread's descriptors, or taskflow has a bug: the worker gets the last lines of stderr
            traceback.print_exc()
            os._exit(os.EX_SOFTWARE)
        syscalls.end_now()

    async def _serve(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=self._end)
        heard: asyncio.Queue[Message] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(self._answer_each(heard))
            unpacker = Unpacker(sys.maxsize)  # the worker is trusted, and has its own limits
            while received := await reader.read(1 << 16):
                for message in unpacker.feed(received):
                    self._hear(message, heard)
            if self._is_busy:  # the worker is dead, or has given up on this run
                syscalls.end_now()
            answering.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_TIMEOUT):
                if self._lifespan is not None:
                    await self._lifespan.end()
                self._calls.end()
                await asyncio.sleep(_EXIT_TIMEOUT)

    def _hear(self, message: Message, heard: asyncio.Queue[Message]) -> None:
        if isinstance(message, Stop):
            if self._run is not None:  # otherwise the run's answer was sent just before this message arrived
                self._run.ask_to_stop(message.why)
            return
        self._is_busy = True
        if isinstance(message, Run):
            self._run = HeldLease(message.lease)
        heard.put_nowait(message)

    async def _answer_each(self, heard: asyncio.Queue[Message]) -> None:
        handshake = await heard.get()
        assert isinstance(handshake, Handshake)
        application: Application = await self._calls.run(partial(Application, handshake))
        self._lifespan = Lifespan(handshake, self._calls)
        runs = ChildExecutor(self._calls, self._say)
        self._answer(Ready(syscalls.resident_memory()))
        while True:
            message = await heard.get()
            match message:
                case Import():
                    await self._calls.run(partial(application.load, message))
                    runs.renew_surroundings()
                    refusal = await self._lifespan.begin()
                    runs.state = self._lifespan.state
                    self._answer(refusal or Ready(syscalls.resident_memory()))
                case Run(lease, module):
                    found = await self._calls.run(partial(application.find, lease.envelope.job, module))
                    if isinstance(found, CallRefused):
                        self._answer(found)
                    else:
                        assert self._run is not None
                        verdict = (await runs.run(self._run)).verdict
                        is_whole = application.is_whole and self._lifespan.is_intact
                        self._answer(Finished(verdict, syscalls.resident_memory(), is_whole))

    def _answer(self, message: Message) -> None:
        self._run = None
        for stream in (sys.stdout, sys.stderr):  # so that the output reaches the worker before the answer
            with contextlib.suppress(Exception):  # a job may have replaced or closed the stream
                stream.flush()
        syscalls.flush_native()
        self._is_busy = False
        self._say(message)

    def _say(self, message: Message) -> None:
        self._writer.write(pack(message))


# The name that multiprocessing gives to the main module in a spawned process. Applications may check for it; see `RUN_AS_MAIN`.
_MAIN = "__mp_main__"


class Application:
    """Imports modules and finds jobs. If an import fails, the runs that need the module are refused."""

    def __init__(self, handshake: Handshake) -> None:
        self._failures: dict[str, CallRefused] = {}
        self._log_level = handshake.log_level
        sys.argv[:] = handshake.arguments
        default_app().enter_child(handshake.settings, is_reachable=handshake.is_reachable)
        for module in handshake.modules:
            self.load(Import(module))

    @property
    def is_whole(self) -> bool:
        """True if every module was imported."""
        return not self._failures

    def load(self, wanted: Import) -> None:
        """Import the module. If that fails, record the reason for the runs that need the module."""
        try:
            with default_app().importing(wanted.module):
                if wanted.main is None:
                    importlib.import_module(wanted.module)
                else:
                    _load_main(wanted.main)
        except BaseException as error:  # includes SystemExit and exception classes that the module defines
            failure = failure_of(error, 1)
            why = f"{wanted.main or wanted.module} cannot be imported in a child process: {failure.type}: {failure.message}"
            self._failures[wanted.module] = CallRefused(why, failure.traceback)

    def find(self, name: str, module: str) -> AnyJob | CallRefused:
        if not logging.getLogger().handlers:  # the application has not set up logging
            logging.basicConfig(level=self._log_level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
        default_app().read_settings()
        if module in self._failures:  # the module may have declared the job before it failed
            return self._failures[module]
        return default_app().registry.get(name) or CallRefused(
            f"no job {name!r} in {module}, which a child process imported: declare the job at module level, "
            'not inside a function or under `if __name__ == "__main__":`',
            "",
        )


def _load_main(main: str) -> None:
    """Import the main module under a name other than `__main__`, so that code meant only for the command does not run again."""
    module = ModuleType(_MAIN)
    is_file = os.path.isabs(main)
    content = runpy.run_path(main, run_name=_MAIN) if is_file else runpy.run_module(main, run_name=_MAIN, alter_sys=True)
    module.__dict__.update(content)
    sys.modules["__main__"] = sys.modules[_MAIN] = module


class Lifespan:
    """Calls the application's `child_initializer` and enters its `child_lifespan`, once, after importing the first job's module."""

    def __init__(self, handshake: Handshake, calls: MainThreadCalls) -> None:
        self.state: Any = NoState() if handshake.has_lifespan else None  # until the child's own lifespan returns a state
        self._hooks = handshake.hooks
        self._calls = calls
        self._leave: Callable[[], Awaitable[Any]] | None = None
        self._has_begun = False
        self._held: _Held | None = None

    @property
    def is_intact(self) -> bool:
        """False if the async lifespan has ended early, as it does when a job cancels every task in its loop."""
        return self._held is None or not self._held.has_ended

    async def begin(self) -> CallRefused | None:
        """On the first call, call the initializer and enter the lifespan. Return the reason if either fails, otherwise None."""
        if self._has_begun:
            return None
        self._has_begun = True
        name = "its set-up"
        try:
            settings = default_app().settings
            for name in self._hooks:
                if getattr(settings, name) is None:
                    raise ConfigurationError(
                        f"no module that a child process imports configures it: call configure({name}=...) in the jobs' module, "
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
            print("child_lifespan failed during cleanup:", failure_of(error, 1).traceback, file=sys.stderr, flush=True)

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
    """Holds an async context manager in a separate task, because the task that enters it must also leave it."""

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
    """Replaces `ctx.state` if only the worker's process has a state. Any use of it raises TaskflowError."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise TaskflowError(
            'ctx.state exists only in the worker\'s process, and a job with runs_in="process" runs in another: give child processes '
            "a state with configure(child_lifespan=...), or create what it needs in the job itself"
        )

    def __getitem__(self, key: object) -> Any:
        self.__getattr__("item")

    def __bool__(self) -> bool:
        return bool(self.__getattr__("truth"))

    def __repr__(self) -> str:
        return "<no ctx.state in a child process>"
