"""The servers and the proxy that other tests stand on."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(holds: Callable[[], object], timeout: float = 10.0) -> None:
    """Wait for what another process does in its own time, and tells nobody of."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.002)
