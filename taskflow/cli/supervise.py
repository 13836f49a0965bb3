"""Runs `taskflow worker` with `--processes` or another option that needs a supervisor. Worker processes run the same command and also start
here, with a socket to their supervisor. This module does not import the application, which only workers do."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from importlib import import_module
from typing import Final

from taskflow.cli.log_output import BackgroundHandler, logging_to_stderr
from taskflow.cli.startup import command_of, environment_of, interrupts
from taskflow.cli.worker_options import PREFIX
from taskflow.model.errors import ConfigurationError, DriverMissing
from taskflow.model.printable import one_line
from taskflow.worker.children.syscalls import die_before_parent, end_with_parent
from taskflow.worker.processes import SUPERVISED, FileWatch, supervise
from taskflow.worker.supervisor import SupervisorOptions

log: Final = logging.getLogger("taskflow.worker")

DEBOUNCE: Final = 400  # milliseconds over which changes are grouped, because an editor or a branch checkout may write several files
MAX_LINE: Final = 2_000


def run(arguments: argparse.Namespace) -> int:
    address = os.environ.pop(SUPERVISED, None)  # processes that jobs start must not inherit it
    if address is None:
        return _supervise(arguments)
    die_before_parent()
    arguments.supervisor = SupervisorSocket(address, max_jobs=arguments.max_jobs)
    code: int = import_module("taskflow.cli.worker").run(arguments)
    return code


def _supervise(arguments: argparse.Namespace) -> int:
    arguments.collector.settle()
    if arguments.reload and arguments.drain:
        raise ConfigurationError("--reload and --drain cannot be combined: a drained worker has nothing to reload")
    options = SupervisorOptions(
        processes=arguments.processes or 1,
        grace=arguments.grace,
        max_memory=arguments.max_memory,
        stall_limit=arguments.stall_limit,
        is_draining=arguments.drain,
        is_reloading=arguments.reload,
    )
    watch = _file_watch() if arguments.reload else None
    # If the number of processes is a setting, it's passed on in the environment, so that workers still know of their supervisor after
    # pyproject.toml has changed.
    pinned = {f"{PREFIX}PROCESSES": str(arguments.processes)} if "processes" in arguments.settings else {}
    environment = environment_of(arguments.broker) | pinned
    is_asked = arguments.health_port is not None or "NOTIFY_SOCKET" in os.environ
    with (
        logging_to_stderr(arguments.log_level, arguments.log_format, handler=BackgroundHandler()),
        import_module("taskflow.cli.health").FleetHealthReport(arguments) if is_asked else nullcontext() as health_report,
    ):
        interrupts.raise_again()
        hooks = {} if health_report is None else {"on_news": health_report.note, "on_stop": health_report.stop}
        return supervise(options, command_of(arguments.argv), environment, watch=watch, **hooks)


def _file_watch() -> FileWatch:
    """Return a function that watches the Python files in and below this folder, except in virtual environments. Raises DriverMissing."""
    try:
        watchfiles = import_module("watchfiles")
    except ImportError as error:
        raise DriverMissing("--reload needs watchfiles: pip install watchfiles") from error

    def watch(record_change: Callable[[], None]) -> None:
        def wait_for_changes() -> None:
            for _ in watchfiles.watch(os.getcwd(), watch_filter=watchfiles.PythonFilter(), debounce=DEBOUNCE, raise_interrupt=False):
                record_change()

        threading.Thread(target=wait_for_changes, name="taskflow-reload", daemon=True).start()

    return watch


class SupervisorSocket:
    """A worker's connection to its supervisor, for reports and requests. The worker kills itself when the supervisor's end closes."""

    def __init__(self, address: str, *, max_jobs: int | None) -> None:
        descriptor, supervisor, slot = map(int, address.split())  # the parts of the environment variable named by `SUPERVISED`
        self.is_leaving = False
        self.is_first = slot == 0
        self.retired = Future[None]()  # done when this worker must stop claiming and exit after its runs: another worker takes its slot
        self.deaths = deque[tuple[bytes, str]]()  # dead sessions of other workers with their causes, to report and then confirm
        self.on_death: Callable[[], object] = lambda: None  # called in another thread after each addition to `deaths`
        self._runs_left = max_jobs
        self._lock = threading.Lock()
        self._end = socket.socket(fileno=descriptor)
        self._end.set_inheritable(False)
        end_with_parent()
        if os.getppid() != supervisor:  # the supervisor has already died
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=self._listen, name="taskflow-supervisor-socket", daemon=True).start()

    def say(self, words: str) -> bool:
        """Send a line without waiting, so that a stopped or dead supervisor delays nothing. Return False if it could not be sent."""
        try:
            self._end.send(f"{one_line(words, MAX_LINE)}\n".encode(), socket.MSG_DONTWAIT)
        except OSError:
            log.debug("could not send to the supervisor: %s", words)
            return False
        return True

    def count_run(self) -> None:
        """Count a run, and retire once `max_jobs` runs have ended."""
        if self._runs_left is not None:
            self._runs_left -= 1
            if self._runs_left == 0:
                took = "this worker has reached --max-jobs"
                log.info("%s: another worker takes over, while this one finishes its runs", took)
                self._retire()

    def _retire(self) -> None:
        with self._lock:  # two threads call this
            if self.is_leaving:
                return
            self.is_leaving = True
        self.say("retiring")
        self.retired.set_result(None)

    def _listen(self) -> None:
        rest = b""
        while True:
            try:
                heard = self._end.recv(4096)
            except OSError:  # a job has closed the descriptor
                return
            if not heard:  # the supervisor has died, but the kernel has not ended this process
                os.kill(os.getpid(), signal.SIGKILL)
            *lines, rest = (rest + heard).split(b"\n")
            for line in lines:
                match line.decode("utf-8", "replace").split(" ", 2):
                    case ["retire"]:
                        self._retire()
                    case ["died", session, cause]:
                        self.deaths.append((bytes.fromhex(session), cause))
                        with suppress(RuntimeError):  # the loop is closed: other workers report the death
                            self.on_death()
