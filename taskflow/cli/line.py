"""A worker's line to its supervisor: what it says over it, and that it does not outlive it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

from taskflow.model.seams import start_thread
from taskflow.worker.children.system import end_with_parent
from taskflow.worker.events import Ended, Event, SessionOpened

log: Final = logging.getLogger("taskflow.worker")


class Line:
    """A subscriber to the worker's events.

    `told`       what the supervisor has put into the environment
    `max_jobs`   after so many runs the worker retires
    `is_first`   of the supervisor's workers it is the one in the first place
    `died`       sessions whose processes have died before it was started, and of what
    """

    def __init__(self, told: str, *, max_jobs: int | None, died: Sequence[tuple[str, str]] = ()) -> None:
        self.died = [(bytes.fromhex(session), cause) for session, cause in died]
        descriptor, supervisor, place = map(int, told.split())
        self.is_leaving = False
        self.is_first = place == 0
        self._runs_left = max_jobs
        self._retired = Future[None]()
        self._lock = threading.Lock()
        self._end = socket.socket(fileno=descriptor)
        self._end.set_inheritable(False)
        _die_with(supervisor)
        self._watch: threading.Thread = start_thread(self._listen, "taskflow-line")

    def say(self, words: str) -> None:
        """Not waited for: a supervisor that is stopped, or gone, holds nobody up."""
        try:
            self._end.send(f"{words}\n".encode(), socket.MSG_DONTWAIT)
        except OSError:
            log.debug("the supervisor could not be told: %s", words)

    def __call__(self, event: Event) -> None:
        match event:
            case Ended():
                self._count()
            case SessionOpened(_, session):
                self.say(f"session {session.hex()}")

    async def retired(self) -> None:
        """Until this worker is to claim nothing more, and to end when all that it runs has ended: another one takes its place meanwhile."""
        await asyncio.shield(asyncio.wrap_future(self._retired))

    def _count(self) -> None:
        if self._runs_left is None:
            return
        self._runs_left -= 1
        if self._runs_left == 0:
            log.info("this worker has run as many jobs as it may (--max-jobs): another one takes over, and what runs here still ends here")
            self._retire()

    def _retire(self) -> None:
        """From any thread."""
        with self._lock:
            if self.is_leaving:
                return
            self.is_leaving = True
        self.say("retiring")
        self._retired.set_result(None)

    def _listen(self) -> None:
        """The supervisor says but one thing, RETIRE. Where the kernel does not end us with it, its end of the line does."""
        while True:
            try:
                heard = self._end.recv(64)
            except OSError:  # a job has closed the descriptor
                return
            if not heard:
                os.kill(os.getpid(), signal.SIGKILL)
            self._retire()


def _die_with(supervisor: int) -> None:
    """With that process, which is the parent or was it until just now."""
    end_with_parent()
    if os.getppid() != supervisor:
        os.kill(os.getpid(), signal.SIGKILL)
