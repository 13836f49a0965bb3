"""The queues of a worker, and the order in which it claims from them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from taskflow.model.envelope import check_queue


class QueueChoice:
    """The order in which a worker claims from its queues: strict for ``a,b``, weighted
    for ``a=3,b=1``. If no queues are named, it claims from all of them in turn.

    With weights, each queue comes first in a share of the claims that is proportional to its weight, so that none starves.
    """

    def __init__(self, weights: Mapping[str, int | None] | None = None) -> None:
        weights = dict(weights or {})
        self._random = random.Random()  # a job may seed the global generator, and queues would starve
        self.names: tuple[str, ...] = tuple(weights)
        self._weights = {name: weight for name, weight in weights.items() if weight is not None}
        if self._weights and len(self._weights) != len(weights):
            raise ValueError(f"queues {', '.join(weights)}: give every queue a weight (a=3,b=1), or none (a,b: in strict order)")

    @classmethod
    def parse(cls, text: str) -> QueueChoice:
        """Parse the value of `--queues`. If a part of it is invalid, raises a ValueError that names the part."""
        weights: dict[str, int | None] = {}
        for part in text.split(","):
            name, separator, weight = part.strip().partition("=")
            check_queue(name)
            if name in weights:
                raise ValueError(f"queue {name!r} is named twice")
            if separator and not (weight.isascii() and weight.isdigit() and int(weight) > 0):
                raise ValueError(f"queue {name!r} has the weight {weight!r}: expected a whole number, 1 or more")
            weights[name] = int(weight) if separator else None
        return cls(weights)

    def order(self) -> Sequence[str]:
        """Return the queues in the order for the next claim. With weights, this is a random order without
        replacement: the queue with the largest u ** (1 / weight) comes first (Efraimidis and Spirakis 2006)."""
        if not self._weights:
            return self.names
        return sorted(self.names, key=lambda name: self._random.random() ** (1 / self._weights[name]), reverse=True)

    def __str__(self) -> str:
        if not self.names:
            return "every queue"
        return ", ".join(f"{name}={self._weights[name]}" if name in self._weights else name for name in self.names)
