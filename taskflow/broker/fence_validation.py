"""Fences that no store can have given out: stale as any that is not a job's present one, and without room where fences go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from taskflow.model.verdict import Settled, Settlement


async def settle_possible(
    settle: Callable[[Sequence[Settlement]], Awaitable[list[Settled]]],
    settlements: Sequence[Settlement],
    is_possible: Callable[[Settlement], bool],
) -> list[Settled]:
    """The answers of `settle`, which is asked about those alone that are possible."""
    if all(map(is_possible, settlements)):
        return await settle(settlements)
    answers = iter(await settle([settlement for settlement in settlements if is_possible(settlement)]))
    return [next(answers) if is_possible(settlement) else Settled.STALE for settlement in settlements]
