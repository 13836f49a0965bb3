"""A socket that replaces systemd's own."""

from __future__ import annotations

import socket
import time

from tests.cli.processes import TIMEOUT


class FakeSystemd:
    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.environment = {"NOTIFY_SOCKET": address}
        self.lines: list[str] = []

    def hear(self, within: float = TIMEOUT) -> list[str]:
        """Return the lines of the next message; none if no message arrives in time."""
        self.socket.settimeout(within)
        try:
            lines = self.socket.recv(4_096).decode().splitlines()
        except TimeoutError:
            return []
        self.lines += lines
        return lines

    def wait_for(self, start: str) -> str:
        give_up_at = time.monotonic() + TIMEOUT
        while time.monotonic() < give_up_at:
            found = [line for line in self.hear() if line.startswith(start)]
            if found:
                return found[0]
        raise AssertionError(f"{start!r} was not told: {self.lines}")
