"""Keeps the deaths of workers until a living worker has reported them to the broker."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

MAX_DEATHS: Final = 100
REPORT_AGAIN_AFTER: Final = 5.0
DROPPED_AFTER: Final = 300.0
"""Seconds after which a death is no longer reported, because by then the session has lapsed anyway."""


class UnreportedDeaths:
    """Keeps the causes of workers' deaths, keyed by session id in hexadecimal, until a living worker has reported them to the broker."""

    def __init__(self) -> None:
        self._unreported: dict[str, Death] = {}

    def note(self, session: bytes, cause: str) -> None:
        self._unreported[session.hex()] = Death(f"died {session.hex()} {cause}\n".encode(), time.monotonic())
        if len(self._unreported) > MAX_DEATHS:
            del self._unreported[next(iter(self._unreported))]

    def all(self) -> list[bytes]:
        """Return the messages that report the deaths."""
        return [death.words for death in self._unreported.values()]

    def due(self, now: float) -> list[bytes]:
        """Return the messages to send now. Each is sent at once, and again every `REPORT_AGAIN_AFTER` seconds."""
        self._unreported = {session: death for session, death in self._unreported.items() if now < death.noted_at + DROPPED_AFTER}
        due = [death for death in self._unreported.values() if now >= death.due_at]
        for death in due:
            death.due_at = now + REPORT_AGAIN_AFTER
        return [death.words for death in due]

    def forget(self, session: str) -> None:
        """Forget a death that a worker has reported."""
        self._unreported.pop(session, None)


@dataclass
class Death:
    words: bytes
    noted_at: float
    due_at: float = float("-inf")
