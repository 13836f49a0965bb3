"""Logging that never raises, even if a handler or filter of the application does."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable


def log_safely(log: Callable[..., None], *args: object) -> None:
    """Call `log(*args)`, where `log` is a method such as `logger.info`. If it raises, print the traceback to stderr."""
    try:
        log(*args)
    except Exception:
        with contextlib.suppress(Exception):
            traceback.print_exc()
