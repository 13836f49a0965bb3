"""Builds groups of failed jobs from the counts in a store's index."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from taskflow.broker.admin import FailureGroupRecord
from taskflow.model.clock import instant_of
from taskflow.model.fingerprint import deploy_in, fingerprint_in


class FailurePart(msgspec.Struct):
    """The failed jobs that have the same stored cause and the same name. `n` is their number, `first_at` and `last_at` are the times in
    microseconds at which the first and the last of them ended, and `last_id` is the id of the last.

    `cause` may be any value, because it comes from a store.
    """

    cause: Any
    job: str
    n: int
    first_at: int
    last_at: int
    last_id: bytes


def failure_groups_of(parts: Iterable[FailurePart], limit: int) -> list[FailureGroupRecord]:
    """Return the `limit` largest groups, the largest first."""
    by_fingerprint: dict[bytes, list[FailurePart]] = {}
    for part in parts:
        by_fingerprint.setdefault(fingerprint_in(part.cause), []).append(part)
    largest = sorted(by_fingerprint.items(), key=lambda group: (-sum(part.n for part in group[1]), group[0]))
    return [_group(*group) for group in largest[: max(0, limit)]]


def _group(fingerprint: bytes, parts: list[FailurePart]) -> FailureGroupRecord:
    last = max(parts, key=lambda part: part.last_at)
    return FailureGroupRecord(
        fingerprint=fingerprint,
        count=sum(part.n for part in parts),
        first=instant_of(min(part.first_at for part in parts)),
        last=instant_of(last.last_at),
        jobs=_counted((part.job, part.n) for part in parts),
        deploys=_counted((deploy, part.n) for part in parts if (deploy := deploy_in(part.cause))),
        sample=last.last_id,
    )


def _counted(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the sum of the counts for each name, the largest sum first."""
    total: dict[str, int] = {}
    for name, count in counts:
        total[name] = total.get(name, 0) + count
    return dict(sorted(total.items(), key=lambda each: (-each[1], each[0])))
