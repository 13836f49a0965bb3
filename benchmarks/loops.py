"""The event loop that workers use too."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_in_fastest_loop(work: Coroutine[Any, Any, T]) -> T:
    """uvloop's where it is installed, as `taskflow worker` does."""
    try:
        factory = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)
