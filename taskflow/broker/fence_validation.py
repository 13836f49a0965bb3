"""Answers STALE to fences that no store could have issued, and whose numbers may not fit into the store's columns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from taskflow.model.verdict import Settled, Settlement


async def settle_possible(
    settle: Callable[[Sequence[Settlement]], Awaitable[list[Settled]]],
    settlements: Sequence[Settlement],
    is_possible: Callable[[Settlement], bool],
) -> list[Settled]:
    """Settle those for which `is_possible` returns True. The others are STALE."""
    if all(map(is_possible, settlements)):
        return await settle(settlements)
    answers = iter(await settle([settlement for settlement in settlements if is_possible(settlement)]))
    return [next(answers) if is_possible(settlement) else Settled.STALE for settlement in settlements]
