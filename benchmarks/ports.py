"""Where servers of a benchmark's own listen."""

from __future__ import annotations

import random
import socket
from typing import Final

HOST: Final = "127.0.0.1"


def free_port() -> int:
    """Below those that the kernel gives to whoever connects."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)):
                return port
