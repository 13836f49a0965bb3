"""Askers in step: those that are answered together ask again together, as callers do that wait for each answer."""

from __future__ import annotations

import math
from typing import Final

MIN_CALLERS: Final = 32
"""Of fewer, two calls with half of them cost more than is gained when the store answers one while the other is made: on Redis 91,000 in
place of 98,000 a second with 16 askers, 172,000 in place of 130,000 with 32."""

WITHIN: Final = 1.5
"""Times as long as the questions take to be made, the store may take to answer all of them, or a half. What it takes for a half tells how
much of that each call takes however little it carries, as a commit does, or a network."""


class Step:
    """Whether a half goes out while the other is made: then the store works while the askers do, in place of one after the other.

    That is of use where the store answers about as soon as the questions are made again; where it takes longer, they go together. Instants
    and spans are seconds of one clock. In step are as many as were answered last and waited then.
    """

    __slots__ = ("_each", "_number", "_since", "_took", "_waited")

    def __init__(self) -> None:
        self._number = 0
        self._took = self._each = math.inf
        self._since = 0.0
        self._waited = 0

    def begin(self, now: float) -> None:
        """The first question comes, while nothing is under way."""
        self._since, self._waited = now, 0

    def is_half(self, waiting: int, now: float) -> bool:
        """With the question that has just come. Later ones of the same step are not asked about again: they go together."""
        if self._number < MIN_CALLERS or not 0 <= waiting * 2 - self._number <= 1:
            return False
        return self._took * (waiting - self._waited) <= WITHIN * self._number * (now - self._since)

    def starts(self, waiting: int, now: float) -> None:
        """So many go out that have been made since the last answer, or since the first of them came."""
        if waiting > self._waited:
            self._each = (now - self._since) / (waiting - self._waited)

    def answered(self, asked: int, waiting: int, took: float, now: float) -> bool:
        """Whether what waits goes out at once, before those who were answered have asked again."""
        self._number = asked + waiting
        self._took = took
        self._since, self._waited = now, waiting
        return self._number >= MIN_CALLERS and waiting * 2 >= self._number and took <= WITHIN * self._number * self._each

    def was_answered_at_once(self) -> None:
        """By a store of this process, that does not work while others do."""
        self._took = math.inf
