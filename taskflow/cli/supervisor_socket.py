"""The worker's socket to its supervisor. The worker sends reports over it, and kills itself when the supervisor's end closes."""

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

from taskflow.model.clock import start_thread
from taskflow.model.printable import one_line
from taskflow.worker.children.syscalls import end_with_parent
from taskflow.worker.events import RunEnded, SessionOpened, WaitingForBroker, WorkerEvent

log: Final = logging.getLogger("taskflow.worker")

MAX_LINE: Final = 2_000
"""The maximum length of a line, in characters."""

NoteDeath = Callable[[bytes, str], None]


class SupervisorSocket:
    """A worker's connection to its supervisor. It subscribes to the worker's events.

    `address`   the value of the environment variable `SUPERVISED`
    `max_jobs`  the number of runs after which the worker retires, or None
    `is_first`  True for the worker in the supervisor's first slot
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
        end_with_parent()
        if os.getppid() != supervisor:  # it has died already
            os.kill(os.getpid(), signal.SIGKILL)
        start_thread(self._listen, "taskflow-line")

    def say(self, words: str) -> None:
        """Send a line without waiting, so that a stopped or dead supervisor delays nothing."""
        try:
            self._end.send(f"{one_line(words, MAX_LINE)}\n".encode(), socket.MSG_DONTWAIT)
        except OSError:
            log.debug("could not send to the supervisor: %s", words)

    def __call__(self, event: WorkerEvent) -> None:
        match event:
            case RunEnded() if self._runs_left is not None:
                self._runs_left -= 1
                if self._runs_left == 0:
                    log.info(
                        "this worker has run its number of jobs (--max-jobs): another one takes over, and the runs of this one still finish"
                    )
                    self._retire()
            case WaitingForBroker():
                self.say("waiting")
            case SessionOpened(_, session):
                self.say(f"session {session.hex()}")

    async def retired(self) -> None:
        """Wait until this worker must retire: it stops claiming and exits after its runs, while another worker takes its slot."""
        await asyncio.shield(asyncio.wrap_future(self._retired))

    def on_deaths(self, note: NoteDeath) -> None:
        """Register `note`, which is called with each dead worker's session and cause of death: at once for deaths that are already known,
        and from another thread for later ones. The caller must report each death to the broker, and then confirm that with `say`."""
        with self._lock:
            self._note_death = note
            deaths, self._deaths = self._deaths, []
        for death in deaths:
            note(*death)

    def _retire(self) -> None:
        """Retire this worker. May be called from any thread."""
        with self._lock:
            if self.is_leaving:
                return
            self.is_leaving = True
        self.say("retiring")
        self._retired.set_result(None)

    def _listen(self) -> None:
        """Handle the lines that the supervisor sends. If the supervisor dies and the kernel
        does not end this process too, the process kills itself when the socket closes."""
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
