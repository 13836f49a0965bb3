"""Decides where a job's function runs: in the worker's event loop, in one of its threads, or in a child process."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, Literal, cast, get_args

from taskflow.model.errors import DeclarationError

RunsIn = Literal["loop", "thread", "process"]

_MODES: Final = get_args(RunsIn)

# Names of the main module; the second one is used in child processes, by multiprocessing and by taskflow.
RUN_AS_MAIN: Final = ("__main__", "__mp_main__")


def mode_for(function: Callable[..., Any], asked: object) -> RunsIn:
    """Return the execution mode of a function: the requested one, or by default "loop" for an async function and "thread" for a plain one.

    Raises ValueError if the request is unknown or does not fit the function. Raises DeclarationError if a child process
    cannot import the function because its code is not in a file.
    """
    own: RunsIn = "loop" if inspect.iscoroutinefunction(function) else "thread"
    if asked is None or asked == own:
        return own
    if not isinstance(asked, str) or asked not in _MODES:
        raise ValueError(
            f'runs_in={asked!r}: expected "process", or "{own}", the default of {"an async" if own == "loop" else "a plain"} function'
        )
    if asked != "process":
        raise ValueError(f'runs_in="{asked}": {_WHY_NOT[own]}, or use runs_in="process"')
    _check_importable(function)
    return cast(RunsIn, asked)


_WHY_NOT: Final = {
    "loop": "an async function runs in the event loop; to run in a thread, make it a plain one",
    "thread": "a plain function would block the event loop; it runs in a thread unless you make it async",
}


def _check_importable(function: Callable[..., Any]) -> None:
    """Raise an error if a child process could not import the function: ValueError if it is defined
    inside another function, DeclarationError if its code is not in a file."""
    if "<locals>" in function.__qualname__ or "<lambda>" in function.__qualname__:
        raise ValueError('runs_in="process": a child process finds it by importing its module; define it there, not inside a function')
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    if function.__module__ in RUN_AS_MAIN and scope.get("__spec__") is None and "__file__" not in scope:
        raise DeclarationError(
            f'@job(runs_in="process") on {function.__qualname__}: a child process must import the module of the job. Code in '
            "an interpreter, a notebook or python -c has no module; move it into a file, and import it"
        )
