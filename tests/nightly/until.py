"""Waiting for what another process does."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable


def until(holds: Callable[[], object], timeout: float = 10.0) -> None:
    """Wait for what another process does in its own time, and tells nobody of."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.002)


def ended(pid: int, timeout: float = 10.0) -> bool:
    """Whether that process, no child of this one, ends in time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], timeout)[0])
    finally:
        os.close(handle)
