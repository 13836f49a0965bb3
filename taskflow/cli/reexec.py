"""Starts this command again in a new process, with a command line that shows no password."""

from __future__ import annotations

import os
import sys
from typing import Final

_BROKER: Final = "TASKFLOW_BROKER_FLAG"
"""The variable that carries the value of `--broker`: a command line, and a password in it, is for every user of the machine to read."""


def command_of(argv: list[str]) -> list[str]:
    """As this process was started, with the same options of Python; or, if another program has called us, as `python -m taskflow`.

    Without `--broker`, see `environment_of`.
    """
    how = sys.orig_argv[1 : len(sys.orig_argv) - len(argv)]
    if argv != sys.orig_argv[len(sys.orig_argv) - len(argv) :] or argv != sys.argv[1:]:
        how = ["-m", "taskflow"]
    return [sys.executable, *how, *_without_broker(argv)]


def environment_of(broker: str | None) -> dict[str, str]:
    """The environment for `command_of`."""
    return {**os.environ, **({} if broker is None else {_BROKER: broker})}


def take_broker(given: str | None) -> str | None:
    """The value of `--broker`, also in a process that was started with `environment_of`. It is taken out of the environment."""
    return os.environ.pop(_BROKER, None) or given


def _without_broker(argv: list[str]) -> list[str]:
    options = argv[: argv.index("--")] if "--" in argv else argv
    kept: list[str] = []
    is_value = False
    for argument in options:
        if not (is_value or argument == "--broker" or argument.startswith("--broker=")):
            kept.append(argument)
        is_value = argument == "--broker" and not is_value
    return kept + argv[len(options) :]
