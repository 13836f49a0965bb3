"""The leases that a connection has given itself, so that they need not be looked up when they are settled."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

import msgspec

from taskflow.model.envelope import ClaimId
from taskflow.model.verdict import Settlement

_MOST: Final = 20_000
"""Leases that are remembered: more than a worker holds. Most of those beyond were settled elsewhere, or lost."""


class Given(msgspec.Struct, frozen=True, gc=False):
    """A lease of a job that no other job waits for, by a key or a join; `fence` is its claim and epoch as a settlement is stored."""

    id: bytes
    claim: ClaimId
    epoch: int
    fence: bytes
    seq: int
    queue: int


class Misremembered(Exception):
    """A lease that was remembered is not there any more. The group is undone, nothing is remembered, and it is done by looking."""


class GivenLeases:
    """By the job's id. True when it was written, which a rollback undoes: `forget` then; and a lease may have been lost since."""

    def __init__(self) -> None:
        self._by_id: dict[bytes, Given] = {}

    def keep(self, all_given: Iterable[Given]) -> None:
        self._by_id.update([(given.id, given) for given in all_given])
        for job_id in list(islice(self._by_id, max(0, len(self._by_id) - _MOST))):
            del self._by_id[job_id]

    def find(self, settlement: Settlement) -> Given | None:
        given = self._by_id.get(settlement.id)
        return given if given is not None and given.epoch == settlement.epoch and given.claim == settlement.claim else None

    def drop(self, ids: Iterable[bytes]) -> None:
        for job_id in ids:
            self._by_id.pop(job_id, None)

    def forget(self) -> None:
        self._by_id.clear()
