"""The options of `taskflow worker`, and its settings in pyproject.toml and the environment. This module imports little besides argparse."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from taskflow.cli.base_parser import MAX_POSITIVE, MAX_PROCESSES, Parser, port, positive, processes, seconds, size, ttl
from taskflow.model.errors import ConfigurationError
from taskflow.model.printable import shown, whole

PREFIX: Final = "TASKFLOW_WORKER_"  # prefix of the environment variables for settings
own_modules: Final[list[str]] = []  # modules that `taskflow worker` imports first, if a framework runs the command
found_modules: Final[list[str]] = []  # modules that a framework has found, imported if the user names none


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `taskflow worker`, except its modules and its broker."""
    add = parser.add_argument
    add("--queues", metavar="Q[=W],...", help="a,b: in strict order; a=3,b=1: weighted (default: every queue)")
    add("--concurrency", type=positive, default=100, metavar="N", help="the number of jobs to run at the same time (default: 100)")
    add("--drain", action="store_true", help="exit when the queues are empty, with 1 if a job has failed")
    horizon = "with --drain, wait for jobs due within S seconds (default: 60)"
    add("--drain-horizon", type=seconds, default=60.0, metavar="S", help=horizon)
    add("--grace", type=seconds, default=25.0, metavar="S", help="seconds that runs have to finish when stopping (default: 25)")
    lapse = "seconds without a heartbeat after which other workers take its jobs (default: 20)"
    add("--ttl", type=ttl, default=20.0, metavar="S", help=lapse)
    start = "seconds to wait at startup for a broker that does not answer, before exiting with 3 (default: 30; 0: do not wait)"
    add("--start-timeout", type=seconds, default=30.0, metavar="S", help=start)
    stall = "seconds for which a job may block the event loop; after that the worker exits with 5, and other workers take its jobs"
    stall += " (default: 300; 0: no limit)"
    add("--stall-limit", type=seconds, default=300.0, metavar="S", help=stall)
    add("--health-port", type=port, metavar="PORT", help="answer /live and /ready over HTTP (0: any free port)")
    host = "the address to listen on (default: 127.0.0.1, for this machine only; a container needs 0.0.0.0 or ::)"
    add("--health-host", default="127.0.0.1", metavar="HOST", help=host)
    add = parser.add_argument_group(
        "under a supervisor", "The supervisor replaces workers that die. SIGHUP replaces them one by one."
    ).add_argument
    add("--processes", type=processes, metavar="N", help="run N worker processes, each with --concurrency jobs")
    add("--max-jobs", type=positive, metavar="N", help="replace a worker that has run N jobs")
    memory = "replace a worker that uses more memory, for example 512M or 1G"
    add("--max-memory", type=size, metavar="BYTES", help=memory)
    add("--reload", action="store_true", help="replace workers when a Python file in this folder changes")
    add = parser.add_argument
    add("--log-level", type=str.lower, default="info", choices=("debug", "info", "warning", "error"), help="default: info")
    add("--log-format", type=str.lower, default="text", choices=("text", "json"), help="default: text")


def is_supervised(arguments: argparse.Namespace) -> bool:
    """Return True if an option needs a supervisor. Otherwise the command runs the worker itself."""
    return bool(arguments.processes or arguments.max_jobs or arguments.max_memory or arguments.reload)


def parse_with_settings(parser: Parser, argv: Sequence[str] | None, command: str) -> argparse.Namespace:
    """Parse the command line with the settings as defaults. Exit with 2 if no module is named. The result's `settings` maps each setting
    in effect to its source."""
    settings = {name: (value, where) for name, value, where in _settings() if command == "worker" or name == "modules"}
    defaults = {name: value for name, (value, _) in settings.items()}
    worker = parser.commands[command]
    worker.set_defaults(**defaults)
    arguments = parser.parse_args(argv)
    arguments.settings = {name: where for name, (value, where) in settings.items() if getattr(arguments, name) is value}
    arguments.modules = [*own_modules, *(arguments.modules or found_modules)]
    if not arguments.modules[len(own_modules) :]:
        worker.error(
            f"name the modules that declare jobs, as in `taskflow {command} app.tasks`, "
            "or set modules in [tool.taskflow.worker] of pyproject.toml"
        )
    return arguments


def _settings() -> Iterator[tuple[str, Any, str]]:
    """Yield each given setting with its value and source: first those in pyproject.toml, then those in the environment."""
    from taskflow.app.pyproject import check_names, project_table, table_in

    found = project_table(Path.cwd())
    if found is not None:
        file, table = found
        check_names(given := table_in(table, "worker", "tool.taskflow.", file), "tool.taskflow.worker", file, SETTINGS)
        for name, value in given.items():
            where = f"{name} in [tool.taskflow.worker] of {file}"
            yield name, SETTINGS[name](where, value), where
    for name, read in SETTINGS.items():
        variable = PREFIX + name.upper()
        if text := os.environ.get(variable):
            yield name, read(variable, text), variable


def _joined(where: str, given: object) -> str:
    parts: list[Any] = given if isinstance(given, list) else [given]
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise ConfigurationError(f"{where} is {given!r}: expected a string or a list of strings, none of them empty")
    return ",".join(parts)


def _modules(where: str, given: object) -> list[str]:
    return [name for name in re.split(r"[,\s]+", _joined(where, given)) if name]


def _count(where: str, given: object) -> int:
    text = given if isinstance(given, str) else shown(given)
    try:
        return positive(text)
    except argparse.ArgumentTypeError:
        bounds = f"from 1 to {MAX_POSITIVE:,}" if whole(text) else "1 or more"
        raise ConfigurationError(f"{where} is {shown(given)}: expected a whole number, {bounds}") from None


def _processes(where: str, given: object) -> int:
    if (number := _count(where, given)) > MAX_PROCESSES:
        raise ConfigurationError(f"{where} is {shown(given)}: expected at most {MAX_PROCESSES}, because more would overload the machine")
    return number


SETTINGS: Final[Mapping[str, Callable[[str, object], Any]]] = {
    "modules": _modules,
    "queues": _joined,
    "concurrency": _count,
    "processes": _processes,
}
"""For each setting, the function that checks and converts its value. The function gets the setting's source for its error messages."""
