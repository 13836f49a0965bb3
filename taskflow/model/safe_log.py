"""Logs in such a way that an error of the application's logging, in a handler or a filter, stops nothing."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable


def log_safely(log: Callable[..., None], *args: object) -> None:
    """Call `log(*args)`, for example `log.info`. If it raises, stderr gets the traceback."""
    try:
        log(*args)
    except Exception:
        with contextlib.suppress(Exception):
            traceback.print_exc()
