"""The settings of `taskflow worker` and `taskflow check`: `[tool.taskflow.worker]` in pyproject.toml, and TASKFLOW_WORKER_* in the
environment. The supervisor reads them too, so this module imports little."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from taskflow.app.pyproject import check_names, project_table, table_in
from taskflow.cli.base_parser import Parser
from taskflow.cli.option_types import MOST_PROCESSES, positive
from taskflow.cli.worker_options import PREFIX
from taskflow.model.errors import ConfigurationError


def parse_with_settings(parser: Parser, argv: Sequence[str] | None, command: str) -> argparse.Namespace:
    """Parse the command line with the settings as defaults, so that options override them.

    `settings` of the result says where each setting comes from that no option overrides. Raises ConfigurationError for an invalid setting.
    """
    settings = {name: (value, where) for name, value, where in _settings() if command == "worker" or name == "modules"}
    defaults = {name: value for name, (value, _) in settings.items()}
    worker = parser.commands[command]
    worker.set_defaults(**defaults, **({"module": "supervise"} if "processes" in defaults else {}))
    arguments = parser.parse_args(argv)
    arguments.settings = {name: where for name, (value, where) in settings.items() if getattr(arguments, name) is value}
    if not arguments.modules:
        worker.error(
            f"name the modules that declare jobs, as in `taskflow {command} app.tasks`, "
            "or set modules in [tool.taskflow.worker] of pyproject.toml"
        )
    return arguments


def _settings() -> Iterator[tuple[str, Any, str]]:
    """Yield each setting that is given, its value and its place. One of the environment follows that of pyproject.toml."""
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


def _modules(where: str, given: object) -> list[str]:
    return [name for name in re.split(r"[,\s]+", _joined(where, given)) if name]


def _joined(where: str, given: object) -> str:
    parts: list[Any] = given if isinstance(given, list) else [given]
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise ConfigurationError(f"{where} is {given!r}: expected text or a list of texts, which are not empty")
    return ",".join(parts)


def _count(where: str, given: object) -> int:
    try:
        return positive(str(given))
    except argparse.ArgumentTypeError:
        raise ConfigurationError(f"{where} is {given!r}: expected a whole number, 1 or more") from None


def _processes(where: str, given: object) -> int:
    if (number := _count(where, given)) > MOST_PROCESSES:
        raise ConfigurationError(f"{where} is {given!r}: expected at most {MOST_PROCESSES}, because more would fill the machine")
    return number


SETTINGS: Final[Mapping[str, Callable[[str, object], Any]]] = {
    "modules": _modules,
    "queues": _joined,
    "concurrency": _count,
    "processes": _processes,
}
"""For each setting, the function that checks and converts its value. It gets the place of the setting for its error."""
