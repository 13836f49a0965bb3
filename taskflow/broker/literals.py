"""Defines the constants that are inserted into a store's scripts before the scripts are sent.

A script uses names such as E.CLAIM, W.STORE_FULL and R.upkeepers; Python defines their values.
"""

from __future__ import annotations

from collections.abc import Callable

from taskflow.broker.protocol import GONE_AFTER, MAX_NUDGED_WHEN_DUE, PASSED_ON_AFTER
from taskflow.model import wording
from taskflow.model.clock import to_microseconds
from taskflow.model.transitions import Event


def literals(text: Callable[[str], str]) -> dict[str, str]:
    """Return the literal for each name: events, words and rules. `text` formats a string in the script's language. Times are in
    microseconds."""
    return {f"E.{event.name}": text(event.value) for event in Event} | {
        "W.DROPPED_OVER_CAP": text(wording.DROPPED_OVER_CAP),
        "W.STORE_FULL": text(wording.STORE_FULL),
        "R.passed_on_after": str(to_microseconds(PASSED_ON_AFTER)),
        "R.gone_after": str(to_microseconds(GONE_AFTER)),
        "R.upkeepers": str(MAX_NUDGED_WHEN_DUE),
    }
