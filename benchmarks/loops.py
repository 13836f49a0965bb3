"""The event loop of the benchmarks, which is the one that workers use."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_in_fastest_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine, in uvloop if it's installed, as `taskflow worker` does."""
    try:
        factory = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)
