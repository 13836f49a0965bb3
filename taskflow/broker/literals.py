"""Defines the constants that are inserted into a store's scripts before the scripts are sent.

A script uses names such as E.CLAIM, W.STORE_FULL and R.max_nudged_when_due; Python defines their values.
"""

from __future__ import annotations

from collections.abc import Callable

from taskflow.broker.protocol import LISTENER_TTL, MAX_NUDGED_WHEN_DUE, PASS_ON_TIMEOUT
from taskflow.model import wording
from taskflow.model.clock import to_microseconds
from taskflow.model.transitions import Event


def literals(text: Callable[[str], str]) -> dict[str, str]:
    """Return the literals of events, words and rules, by name. `text` quotes a string for the script. Times are in microseconds."""
    return {f"E.{event.name}": text(event.value) for event in Event} | {
        "W.DROPPED_OVER_CAP": text(wording.DROPPED_OVER_CAP),
        "W.STORE_FULL": text(wording.STORE_FULL),
        "R.pass_on_timeout": str(to_microseconds(PASS_ON_TIMEOUT)),
        "R.listener_ttl": str(to_microseconds(LISTENER_TTL)),
        "R.max_nudged_when_due": str(MAX_NUDGED_WHEN_DUE),
    }
