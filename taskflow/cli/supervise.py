"""Runs `taskflow worker` with `--processes` or another flag that needs a supervisor.
Worker processes run the same command and also start here.

This module does not import the application: the supervisor never does, and a worker does so later.
"""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Final

from taskflow.cli.interrupts import interrupts
from taskflow.cli.log_output import BackgroundHandler, logging_to_stderr
from taskflow.cli.reexec import command_of, environment_of
from taskflow.cli.worker_options import PREFIX
from taskflow.model.errors import ConfigurationError, DriverMissing
from taskflow.worker.children.syscalls import die_before_parent
from taskflow.worker.processes import SUPERVISED, FileWatch, supervise
from taskflow.worker.supervisor_state import SupervisorOptions

DEBOUNCE: Final = 400
"""Milliseconds over which changes are grouped, because an editor or a branch checkout may write several files."""


def run(arguments: argparse.Namespace) -> int:
    address = os.environ.pop(SUPERVISED, None)  # processes that jobs start must not inherit it
    if address is None:
        return _supervise(arguments)
    die_before_parent()
    arguments.line = import_module("taskflow.cli.supervisor_socket").SupervisorSocket(address, max_jobs=arguments.max_jobs)
    code: int = import_module("taskflow.cli.worker").run(arguments)
    return code


def _supervise(arguments: argparse.Namespace) -> int:
    arguments.collector.settle()
    if arguments.reload and arguments.drain:
        raise ConfigurationError("--reload and --drain exclude each other: a drained worker has nothing to reload")
    watch = _a_watch() if arguments.reload else None
    options = SupervisorOptions(
        processes=arguments.processes or 1,
        grace=arguments.grace,
        max_memory=arguments.max_memory,
        stall_limit=arguments.stall_limit,
        is_draining=arguments.drain,
        is_reloading=arguments.reload,
    )
    # If the number of processes is a setting, the environment keeps it, so that a worker also starts with a supervisor after
    # pyproject.toml has changed.
    pinned = {f"{PREFIX}PROCESSES": str(arguments.processes)} if "processes" in arguments.settings else {}
    environment = environment_of(arguments.broker) | pinned
    is_asked = arguments.health_port is not None or "NOTIFY_SOCKET" in os.environ
    with (
        logging_to_stderr(arguments.log_level, arguments.log_format, handler=BackgroundHandler()),
        import_module("taskflow.cli.health").FleetHealthReport(arguments) if is_asked else nullcontext() as health_report,
    ):
        interrupts.raise_again()
        return supervise(options, command_of(arguments.argv), environment, watch=watch, listener=health_report)


def _a_watch() -> FileWatch:
    """Return a function that watches the Python files in and below the current
    folder, except in virtual environments and similar folders."""
    try:
        watchfiles = import_module("watchfiles")
    except ImportError as error:
        raise DriverMissing("--reload needs watchfiles: pip install watchfiles") from error

    def watch(note_change: Callable[[], None]) -> None:
        def look() -> None:
            for _ in watchfiles.watch(os.getcwd(), watch_filter=watchfiles.PythonFilter(), debounce=DEBOUNCE, raise_interrupt=False):
                note_change()

        threading.Thread(target=look, name="taskflow-reload", daemon=True).start()

    return watch
