"""The statements whose cost must not grow with what waits, and what they may cost."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from taskflow.model.clock import microseconds_of
from tests.stores.postgres.counts import SESSION, Store

LIMIT: Final = 10


UNTIL_KEPT: Final = 6
"""Executions until the server may keep a plan for whatever parameters."""


CLAIM: Final = "SELECT * FROM taskflow.claim(NULL, NULL, $1, $2, $3, $4)"


BEAT: Final = "SELECT * FROM taskflow.beat(NULL, NULL, $1, '{}', '{}', 1, '{}', '{}', '{}', '{}', false, NULL, false)"


UPKEEP: Final = "SELECT * FROM taskflow.upkeep($1, NULL, $2)"


IN_A_DAY: Final = microseconds_of(datetime.now(UTC) + timedelta(days=1))


CALLS: Final[Sequence[Any]] = (
    (CLAIM, SESSION, 1, [], LIMIT),
    (CLAIM, SESSION, 1, ["default"], LIMIT),
    (UPKEEP, None, LIMIT),
    (UPKEEP, IN_A_DAY, LIMIT),
)


async def assert_a_beat_is_cheap(store: Store) -> None:
    """However many jobs there are, it reads none but the session's own."""
    for cost in await store.costs(BEAT, SESSION, times=UNTIL_KEPT):
        assert "jobs" not in cost
        assert all(rows <= 3 * LIMIT for _, rows in cost.values()), cost


def assert_cheap(costs: list[dict[str, tuple[int, int]]], index: str, *, is_there: bool = True) -> None:
    """By that index each time, if there is something to be found by it, never by the table from end to end, and of few rows."""
    for cost in costs:
        assert index in cost or not is_there, costs
        assert "jobs" not in cost, costs
        assert all(rows <= 3 * LIMIT for _, rows in cost.values()), cost


any_kind = pytest.mark.parametrize("after", [0.0, 3600.0], ids=["ready", "scheduled"])
