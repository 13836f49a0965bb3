"""The supervisor's end of the socket to a worker."""

from __future__ import annotations

import socket
from typing import Final

LONGEST_LINE: Final = 4096


class WorkerSocket:
    """The supervisor's end of a socket to a worker."""

    def __init__(self, end: socket.socket) -> None:
        self.is_closed = False
        self.has_session = False
        self._end = end
        self._end.setblocking(False)
        self._rest = b""

    def fileno(self) -> int:
        return self._end.fileno()

    def take(self) -> list[str]:
        """Return the lines that have arrived, without waiting."""
        while not self.is_closed and (chunk := self._read()) is not None:
            self._rest += chunk
            self.is_closed = not chunk or len(self._rest) > LONGEST_LINE * 16
        *lines, self._rest = self._rest.split(b"\n")
        return [line.decode("ascii", "replace") for line in lines]

    def say(self, word: bytes) -> bool:
        """Send a message. Return False if it could not be sent."""
        try:
            return self._end.send(word) == len(word)
        except OSError:
            return False

    def close(self) -> None:
        self._end.close()

    def _read(self) -> bytes | None:
        try:
            return self._end.recv(LONGEST_LINE)
        except BlockingIOError:
            return None
        except OSError:  # the other end closed it with unread data
            return b""
