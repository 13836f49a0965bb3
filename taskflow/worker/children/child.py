"""The main program of a child process. It imports the application once, then runs the jobs that the worker sends, one at a time.

The main thread calls the jobs' functions, because some libraries require it. A second thread runs an event loop for
everything else: it reads from the worker, decodes arguments, encodes results, and notices when the worker is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import traceback
from functools import partial
from typing import Final

from taskflow.worker.children.application import Application, Lifespan
from taskflow.worker.children.executor import ChildExecutor, MainThreadCalls
from taskflow.worker.children.messages import CallRefused, Finished, Handshake, Import, Message, Ready, Run, Stop, Unpacker, pack
from taskflow.worker.children.syscalls import (
    HANDLED,
    die_before_parent,
    end_now,
    end_with_parent,
    flush_native,
    keep_handlers_from_forks,
    resident_memory,
)
from taskflow.worker.lease_table import HeldLease

# Seconds to leave the lifespan and exit after the last job.
_EXIT_WITHIN: Final = 4.0


def main(descriptor: int) -> None:
    """Run the child process. `descriptor` is its end of the socket to the worker."""
    end_with_parent()
    die_before_parent()
    os.set_inheritable(descriptor, False)
    for number in HANDLED:
        signal.signal(number, _leave_it_to_the_worker)
    keep_handlers_from_forks(lambda handler: handler is _leave_it_to_the_worker)
    faulthandler.enable(all_threads=False)  # shows a crash of this process in the log and in the job's error
    for stream in (sys.stdout, sys.stderr):  # prints at once, while the job runs
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]  # no code has replaced them yet
    calls = MainThreadCalls()
    connection = WorkerConnection(socket.socket(fileno=descriptor), calls)
    threading.Thread(target=connection.serve, name="taskflow-child", daemon=True).start()
    calls.make()


def _leave_it_to_the_worker(number: int, frame: object) -> None:
    """Do nothing. A service manager may signal all processes of a service, but the worker lets runs
    finish. A handler, unlike an ignored signal, is not inherited by programs that are started here."""


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
        end_now()

    async def _serve(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=self._end)
        heard: asyncio.Queue[Message] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(self._answer_each(heard))
            unpacker = Unpacker(sys.maxsize)  # the worker is trusted, and has its own limits
            while received := await reader.read(1 << 16):
                for message in unpacker.feed(received):
                    self._hear(message, heard)
            if self._is_busy:  # the worker is dead, or has given up this run
                end_now()
            answering.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_WITHIN):
                if self._lifespan is not None:
                    await self._lifespan.end()
                self._calls.end()
                await asyncio.sleep(_EXIT_WITHIN)

    def _hear(self, message: Message, heard: asyncio.Queue[Message]) -> None:
        if isinstance(message, Stop):
            if self._run is not None:  # otherwise it has crossed the run's answer
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
        self._answer(Ready(resident_memory()))
        while True:
            message = await heard.get()
            match message:
                case Import():
                    await self._calls.run(partial(application.load, message))
                    refusal = await self._lifespan.begin()
                    runs.state = self._lifespan.state
                    self._answer(refusal or Ready(resident_memory()))
                case Run(lease, module):
                    found = await self._calls.run(partial(application.find, lease.envelope.job, module))
                    if isinstance(found, CallRefused):
                        self._answer(found)
                    else:
                        assert self._run is not None
                        verdict = (await runs.run(self._run)).verdict
                        is_whole = application.is_whole and self._lifespan.is_intact
                        self._answer(Finished(verdict, resident_memory(), is_whole))

    def _answer(self, message: Message) -> None:
        self._run = None
        for stream in (sys.stdout, sys.stderr):  # so that the output reaches the worker before the answer
            with contextlib.suppress(Exception):  # a job may have replaced or closed the stream
                stream.flush()
        flush_native()
        self._is_busy = False
        self._say(message)

    def _say(self, message: Message) -> None:
        self._writer.write(pack(message))
