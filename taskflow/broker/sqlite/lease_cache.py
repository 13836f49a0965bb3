"""Caches leases that this connection granted, so that settling them needs no look-up."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

import msgspec

from taskflow.model.envelope import ClaimId
from taskflow.model.verdict import Settlement

_MOST: Final = 20_000
"""The maximum number of cached leases, more than a worker holds. Older
ones have usually been lost, or settled through another connection."""


class CachedLease(msgspec.Struct, frozen=True, gc=False):
    """The lease of a job that no key or join ties to another. `fence` holds the claim and the epoch as a settlement stores them."""

    id: bytes
    claim: ClaimId
    epoch: int
    fence: bytes
    seq: int
    queue: int


class StaleCache(Exception):
    """Raised if a cached lease has been lost. The group is rolled back, the cache is emptied, and the group runs again with look-ups."""


class LeaseCache:
    """The cached leases by job id, each as it was when it was granted. Call `forget` after a rollback."""

    def __init__(self) -> None:
        self._by_id: dict[bytes, CachedLease] = {}

    def keep(self, leases: Iterable[CachedLease]) -> None:
        self._by_id.update([(lease.id, lease) for lease in leases])
        for job_id in list(islice(self._by_id, max(0, len(self._by_id) - _MOST))):
            del self._by_id[job_id]

    def find(self, settlement: Settlement) -> CachedLease | None:
        lease = self._by_id.get(settlement.id)
        return lease if lease is not None and lease.epoch == settlement.epoch and lease.claim == settlement.claim else None

    def drop(self, ids: Iterable[bytes]) -> None:
        for job_id in ids:
            self._by_id.pop(job_id, None)

    def forget(self) -> None:
        self._by_id.clear()
