"""Detects callers in lockstep: tasks that get their answers together and then ask again together."""

from __future__ import annotations

import math
from typing import Final

MIN_CALLERS: Final = 32
"""The number of callers below which two half calls cost more than they gain. On Redis, 16 callers sent 91,000 calls a second in halves and
98,000 together; 32 callers sent 172,000 in halves and 130,000 together."""

TOLERANCE: Final = 1.5
"""Halves are sent only if the store's answer takes at most this many times as long as the callers take to
ask. The time of a half call includes the fixed cost of a call, such as a commit or a network round trip."""


class Lockstep:
    """Decides whether to send half of the questions while the callers prepare the rest, so that the store and the callers work in parallel.

    This pays off if the store takes about as long to answer as the callers take to ask. If
    the store takes longer, all questions are sent together.

    `_number`  the number of callers in lockstep: those that were just answered, plus those that were waiting at the time
    `_each`    seconds that the callers took to ask one question
    `_took`    seconds that the store took for the last answer
    """

    __slots__ = ("_each", "_number", "_since", "_took", "_waited")

    def __init__(self) -> None:
        self._number = 0
        self._took = self._each = math.inf
        self._since = 0.0
        self._waited = 0

    def begin(self, now: float) -> None:
        """Record that a first question has arrived while no call is in progress."""
        self._since, self._waited = now, 0

    def is_half(self, waiting: int, now: float) -> bool:
        """Return True if half of the expected questions are waiting now, and sending them before the rest would pay
        off. The result is True at most once in each round, because the remaining questions are sent together."""
        if self._number < MIN_CALLERS or not 0 <= waiting * 2 - self._number <= 1:
            return False
        return self._took * (waiting - self._waited) <= TOLERANCE * self._number * (now - self._since)

    def starts(self, waiting: int, now: float) -> None:
        """Record that `waiting` questions are being sent, and measure how long each took to arrive."""
        if waiting > self._waited:
            self._each = (now - self._since) / (waiting - self._waited)

    def answered(self, asked: int, waiting: int, took: float, now: float) -> bool:
        """Record that `asked` questions were answered after `took` seconds, during which `waiting` others
        arrived. Return True if the waiting ones should be sent before the answered callers ask again."""
        self._number = asked + waiting
        self._took = took
        self._since, self._waited = now, waiting
        return self._number >= MIN_CALLERS and waiting * 2 >= self._number and took <= TOLERANCE * self._number * self._each

    def was_answered_at_once(self) -> None:
        """Record that a store in this process answered immediately. Such a store does not work in parallel with the callers."""
        self._took = math.inf
