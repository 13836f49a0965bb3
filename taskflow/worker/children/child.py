"""The main program of a child process: imports the application once, then runs the jobs that its worker hands it, one after the other.

The main thread calls the jobs' functions, plain and async ones, since some of what computes insists on it. Beside it a thread has an event
loop for the rest: it listens to the worker, decodes, judges and encodes by the worker's own executor, and sees when the worker hangs up.
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

from taskflow.worker.children.application import Application
from taskflow.worker.children.calls import MainThreadCalls
from taskflow.worker.children.executor import ChildExecutor
from taskflow.worker.children.system import HANDLED, end_now, end_with_parent, flush_native, keep_handlers_from_forks, resident_memory
from taskflow.worker.children.wire import CallRefused, Hello, Import, Message, Ready, Run, RunEnded, Unpacker, pack
from taskflow.worker.lease_table import HeldLease

# Seconds that an interpreter may take to end by itself, once there is no more to do.
_GOODBYE: Final = 4.0


def main(descriptor: int) -> None:
    """`descriptor` is the child's end of the wire."""
    end_with_parent()
    os.set_inheritable(descriptor, False)
    for number in HANDLED:
        signal.signal(number, _leave_it_to_the_worker)
    keep_handlers_from_forks(lambda handler: handler is _leave_it_to_the_worker)
    faulthandler.enable(all_threads=False)  # the one that crashes is of interest, in the log and in the error of the job
    for stream in (sys.stdout, sys.stderr):  # what is printed shall be seen while the job runs
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]  # nobody has changed them yet
    calls = MainThreadCalls()
    conversation = Conversation(socket.socket(fileno=descriptor), calls)
    threading.Thread(target=conversation.hold, name="taskflow-child", daemon=True).start()
    calls.make()


def _leave_it_to_the_worker(number: int, frame: object) -> None:
    """Whoever winds a service down may signal all its processes: the worker is one of them, and it lets runs end. What is started from here
    has the signal's default again, which it would not have had if it were ignored."""


class Conversation:
    """With the worker, in a thread and an event loop of its own."""

    def __init__(self, wire: socket.socket, calls: MainThreadCalls) -> None:
        self._wire = wire
        self._calls = calls
        self._is_busy = False

    def hold(self) -> None:
        try:
            asyncio.run(self._hold())
        except BaseException:  # a job has closed this thread's descriptors, or it is our own fault: the worker hears of the last lines
            traceback.print_exc()
            os._exit(os.EX_SOFTWARE)
        end_now()

    async def _hold(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=self._wire)
        heard: asyncio.Queue[Message] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(self._answer_each(heard))
            unpacker = Unpacker(sys.maxsize)  # the worker is trusted, and has bounds of its own
            while received := await reader.read(1 << 16):
                for message in unpacker.feed(received):
                    self._is_busy = True
                    heard.put_nowait(message)
            if self._is_busy:  # the worker is dead, or wants this run no more
                end_now()
            self._calls.end()
            answering.cancel()
        await asyncio.sleep(_GOODBYE)

    async def _answer_each(self, heard: asyncio.Queue[Message]) -> None:
        hello = await heard.get()
        assert isinstance(hello, Hello)
        application: Application = await self._calls.run(partial(Application, hello))
        runs = ChildExecutor(self._calls, self._say, application.state)
        self._answer(Ready(resident_memory()))
        while True:
            message = await heard.get()
            match message:
                case Import():
                    await self._calls.run(partial(application.load, message))
                    self._answer(Ready(resident_memory()))
                case Run(lease, module):
                    found = await self._calls.run(partial(application.find, lease.envelope.job, module))
                    if isinstance(found, CallRefused):
                        self._answer(found)
                    else:
                        verdict = (await runs.run(HeldLease(lease))).verdict
                        self._answer(RunEnded(verdict, resident_memory(), application.is_whole))

    def _answer(self, message: Message) -> None:
        _flush()
        self._is_busy = False
        self._say(message)

    def _say(self, message: Message) -> None:
        self._writer.write(pack(message))


def _flush() -> None:
    """What was printed is to be read before the answer is."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a job may have put anything there, or closed it
            stream.flush()
    flush_native()
