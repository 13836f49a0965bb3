"""Builds a command line and an environment that run this command again in a new process. The command line shows no password."""

from __future__ import annotations

import os
import sys
from typing import Final

_BROKER: Final = "TASKFLOW_BROKER_FLAG"
"""The environment variable that carries the value of `--broker`, which may
contain a password: every user of the machine can read command lines."""


def command_of(argv: list[str]) -> list[str]:
    """Return the command line of this process, with the same Python options, but without `--broker`: see `environment_of`.

    If another program has called taskflow, return `python -m taskflow` with the same arguments.
    """
    how = sys.orig_argv[1 : len(sys.orig_argv) - len(argv)]
    if argv != sys.orig_argv[len(sys.orig_argv) - len(argv) :] or argv != sys.argv[1:]:
        how = ["-m", "taskflow"]
    return [sys.executable, *how, *_without_broker(argv)]


def environment_of(broker: str | None) -> dict[str, str]:
    """Return the environment for the command line that `command_of` returns. It carries the value of `--broker`."""
    return {**os.environ, **({} if broker is None else {_BROKER: broker})}


def take_broker(given: str | None) -> str | None:
    """Remove the variable that `environment_of` has set, and return its value, the broker's URL. If it is not set, return `given`."""
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
