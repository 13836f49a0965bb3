"""Defines the constants (statuses, events, texts and rules) that are inserted into a store's scripts before the scripts are sent.

A script uses names such as S.READY, E.CLAIM, W.CANCELLED and R.repeat_for; Python defines their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from taskflow.broker.protocol import GONE_AFTER, MAX_ENDS, PASSED_ON_AFTER, PURGED_FOR, UPKEEPERS
from taskflow.model import wording
from taskflow.model.clock import to_microseconds
from taskflow.model.record import CODES, POISON
from taskflow.model.rules import LONGEST, Rules
from taskflow.model.schedule import MAX_OFFERED_BYTES, MAX_OFFERS, OFFERED_FOR
from taskflow.model.transitions import Event
from taskflow.model.verdict import MAX_ERRORS_BYTES

BURIED: Final = 7
"""The status code of a dropped job: only its id and fence remain."""


def literals(rules: Rules, *, text: Callable[[str], str], numbers: Callable[[Iterable[int]], str]) -> dict[str, str]:
    """Return the literal for each name. `text` and `numbers` format a
    string and a list in the script's language. Times are in microseconds."""
    values = {f"S.{status.name}": str(code) for status, code in CODES.items()} | {"S.BURIED": str(BURIED)}
    values |= {f"E.{event.name}": text(event.value) for event in Event}
    values |= {f"W.{name}": text(word) for name, word in vars(wording).items() if name.isupper() and isinstance(word, str)}
    values["W.POISON"] = text(POISON)
    return values | {
        "R.session_ttl": str(to_microseconds(rules.session_ttl)),
        "R.longest": str(to_microseconds(LONGEST)),
        "R.ghost_after": str(to_microseconds(rules.ghost_after)),
        "R.max_crashes": str(rules.max_crashes),
        "R.most_crashes_as_poison": str(rules.most_crashes_as_poison),
        "R.crash_backoff": numbers(to_microseconds(seconds) for seconds in rules.crash_backoff),
        "R.hand_back_backoff": numbers(to_microseconds(seconds) for seconds in rules.hand_back_backoff),
        "R.repeat_for": str(to_microseconds(rules.repeat_for)),
        "R.keep_failed": str(to_microseconds(rules.keep_failed)),
        "R.keep_cancelled": str(to_microseconds(rules.keep_cancelled)),
        "R.keep_asleep": str(to_microseconds(rules.keep_asleep)),
        "R.kept_per_queue": str(rules.kept_per_queue),
        "R.most_ends": str(rules.most_ends),
        "R.most_acts": str(rules.most_acts),
        "R.max_ends": str(MAX_ENDS),
        "R.purged_for": str(to_microseconds(PURGED_FOR)),
        "R.upkeep_every": str(to_microseconds(rules.upkeep_every)),
        "R.max_errors_bytes": str(MAX_ERRORS_BYTES),
        "R.passed_on_after": str(to_microseconds(PASSED_ON_AFTER)),
        "R.gone_after": str(to_microseconds(GONE_AFTER)),
        "R.upkeepers": str(UPKEEPERS),
        "R.offered_for": str(to_microseconds(OFFERED_FOR)),
        "R.max_offers": str(MAX_OFFERS),
        "R.max_offered_bytes": str(MAX_OFFERED_BYTES),
    }
