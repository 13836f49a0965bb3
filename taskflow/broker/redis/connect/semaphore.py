"""How many do something at one time in an event loop."""

from __future__ import annotations

import asyncio
from collections import deque


class Semaphore:
    """A semaphore that costs next to nothing while there are enough. Whoever waits gets the turn of one that ends, in their order:
    nobody comes in between."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Whether there was one."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def wait(self) -> None:
        """Until one is had."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came in the same moment
                self.give()
            raise

    def give(self) -> None:
        """The end of a turn."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
