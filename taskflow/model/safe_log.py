"""Logs so that an error in the application's logging (a handler or a filter) does not reach the caller."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable


def log_safely(log: Callable[..., None], *args: object) -> None:
    """Call `log(*args)`, where `log` is `log.info` for example. If it raises, the traceback is printed to stderr."""
    try:
        log(*args)
    except Exception:
        with contextlib.suppress(Exception):
            traceback.print_exc()
