"""The worker's socket to its supervisor. The worker reports over it, and stops when it closes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from taskflow.model.printable import one_line
from taskflow.model.seams import start_thread
from taskflow.worker.children.system import end_with_parent
from taskflow.worker.events import Ended, SessionOpened, WorkerEvent

log: Final = logging.getLogger("taskflow.worker")


MAX_LINE: Final = 2_000
"""The maximum length of a line, in characters."""

NoteDeath = Callable[[bytes, str], None]


class SupervisorSocket:
    """A subscriber to the worker's events.

    `address`    the value of the environment variable `SUPERVISED`
    `max_jobs`   the number of runs after which the worker retires
    `is_first`   True for the worker in the supervisor's first slot
    """

    def __init__(self, address: str, *, max_jobs: int | None) -> None:
        descriptor, supervisor, slot = map(int, address.split())
        self.is_leaving = False
        self.is_first = slot == 0
        self._runs_left = max_jobs
        self._retired = Future[None]()
        self._deaths: list[tuple[bytes, str]] = []
        self._note_death: NoteDeath = lambda session, cause: self._deaths.append((session, cause))
        self._lock = threading.Lock()
        self._end = socket.socket(fileno=descriptor)
        self._end.set_inheritable(False)
        _die_with(supervisor)
        self._watch: threading.Thread = start_thread(self._listen, "taskflow-line")

    def say(self, words: str) -> None:
        """Send a line without waiting, so that a supervisor that is stopped or gone delays nothing."""
        try:
            self._end.send(f"{one_line(words, MAX_LINE)}\n".encode(), socket.MSG_DONTWAIT)
        except OSError:
            log.debug("could not send to the supervisor: %s", words)

    def __call__(self, event: WorkerEvent) -> None:
        match event:
            case Ended():
                self._count()
            case SessionOpened(_, session):
                self.say(f"session {session.hex()}")

    async def retired(self) -> None:
        """Wait until this worker must stop claiming and end after its runs. Another worker takes its slot meanwhile."""
        await asyncio.shield(asyncio.wrap_future(self._retired))

    def hear_of_deaths(self, note: NoteDeath) -> None:
        """Call `note`, from any thread, with the session and cause of each dead process. The caller reports them to the broker, and then to
        the supervisor.
        """
        with self._lock:
            self._note_death = note
            deaths, self._deaths = self._deaths, []
        for death in deaths:
            note(*death)

    def _count(self) -> None:
        if self._runs_left is None:
            return
        self._runs_left -= 1
        if self._runs_left == 0:
            log.info("this worker has run its number of jobs (--max-jobs): another one takes over, and the runs of this one still finish")
            self._retire()

    def _retire(self) -> None:
        """Retire this worker. May be called from any thread."""
        with self._lock:
            if self.is_leaving:
                return
            self.is_leaving = True
        self.say("retiring")
        self._retired.set_result(None)

    def _listen(self) -> None:
        """Read what the supervisor sends, see RETIRE. If the kernel does not end this process with the supervisor, the closed socket
        does."""
        rest = b""
        while True:
            try:
                heard = self._end.recv(4096)
            except OSError:  # a job has closed the descriptor
                return
            if not heard:
                os.kill(os.getpid(), signal.SIGKILL)
            *lines, rest = (rest + heard).split(b"\n")
            for line in lines:
                self._handle_line(line.decode("utf-8", "replace"))

    def _handle_line(self, line: str) -> None:
        match line.split(" ", 2):
            case ["retire"]:
                self._retire()
            case ["died", session, cause]:
                with self._lock:
                    note = self._note_death
                note(bytes.fromhex(session), cause)


def _die_with(supervisor: int) -> None:
    """End this process with the supervisor, which is the parent, or was until a moment ago."""
    end_with_parent()
    if os.getppid() != supervisor:
        os.kill(os.getpid(), signal.SIGKILL)
