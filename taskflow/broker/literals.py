"""Defines the constants (statuses, events, texts and rules) that are inserted into a store's scripts before the scripts are sent.

A script uses names such as S.READY, E.CLAIM, W.CANCELLED and R.repeat_for; Python defines their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

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
    values |= {f"R.{field.name}": _rule(getattr(rules, field.name), field.type, numbers) for field in msgspec.structs.fields(Rules)}
    return values | {
        "R.longest": str(to_microseconds(LONGEST)),
        "R.most_crashes_as_poison": str(rules.most_crashes_as_poison),
        "R.max_ends": str(MAX_ENDS),
        "R.purged_for": str(to_microseconds(PURGED_FOR)),
        "R.max_errors_bytes": str(MAX_ERRORS_BYTES),
        "R.passed_on_after": str(to_microseconds(PASSED_ON_AFTER)),
        "R.gone_after": str(to_microseconds(GONE_AFTER)),
        "R.upkeepers": str(UPKEEPERS),
        "R.offered_for": str(to_microseconds(OFFERED_FOR)),
        "R.max_offers": str(MAX_OFFERS),
        "R.max_offered_bytes": str(MAX_OFFERED_BYTES),
    }


def _rule(rule: Any, kind: type, numbers: Callable[[Iterable[int]], str]) -> str:
    """Return the literal for a rule of this declared type: a duration, a count, or a list of durations."""
    if kind is float:
        return str(to_microseconds(rule))
    return str(rule) if kind is int else numbers(map(to_microseconds, rule))
