"""Prints tracebacks without taskflow's own frames, and decides whether an error is taskflow's or the user's."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Final

from taskflow.model.errors import TaskflowError
from taskflow.model.printable import indented
from taskflow.worker.run_errors import failure_of

_LOOPS: Final = f"{Path(asyncio.__file__).parent}{os.sep}"
_PYTHONS: Final = f"{Path(os.__file__).parent}{os.sep}"
_OURS: Final = f"{Path(__file__).parents[1]}{os.sep}"


def print_users(error: BaseException) -> None:
    """Print the error and its causes to stderr, without the frames of taskflow and asyncio."""
    try:
        shown = "".join(_of(traceback.TracebackException.from_exception(error)).format())
    except Exception:  # formatting runs the error's own code, which may raise
        shown = failure_of(error, attempt=1).traceback
    print(indented(shown), file=sys.stderr)


def is_ours(error: BaseException) -> bool:
    """Return True if the error is taskflow's. This holds for a TaskflowError raised in taskflow's code, even if the
    user's code called it. It also holds for an error whose traceback contains only frames of taskflow and Python.

    Any other error has passed through other code, and is treated as the user's.
    """
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, TaskflowError) and files and _is_machinery(files[-1]):
        return True
    return bool(files) and all(_is_machinery(file) or _is_pythons(file) for file in files)


def _of(told: traceback.TracebackException) -> traceback.TracebackException:
    told.stack = traceback.StackSummary.from_list([frame for frame in told.stack if not _is_machinery(frame.filename)])
    for cause in (told.__cause__, told.__context__, *(told.exceptions or ())):
        if cause is not None:
            _of(cause)
    return told


def _is_machinery(file: str) -> bool:
    return file.startswith((_OURS, _LOOPS, "<frozen importlib", "uvloop/")) or file in (importlib.__file__, contextlib.__file__)


def _is_pythons(file: str) -> bool:
    return file.startswith("<frozen ") or (file.startswith(_PYTHONS) and "-packages" not in file)
