"""The leases that a connection has given itself, so that they need not be looked up when they are settled."""

from __future__ import annotations

from typing import Final, NamedTuple

from taskflow.model.envelope import ClaimId

_MOST: Final = 20_000
"""Leases that are remembered: more than a worker holds. Most of those beyond were settled elsewhere, or lost."""


class Given(NamedTuple):
    """A lease of a job that no other job waits for, by a key or a join; `packed` is its claim as it is stored."""

    claim: ClaimId
    packed: bytes
    epoch: int
    seq: int
    queue: int


class Misremembered(Exception):
    """A lease that was remembered is not there any more. The group is undone, nothing is remembered, and it is done by looking."""


class GivenLeases:
    """By the job's id. True when it was written, which a rollback undoes: `forget` then; and a lease may have been lost since."""

    def __init__(self) -> None:
        self._by_id: dict[bytes, Given] = {}

    def keep(self, job_id: bytes, given: Given) -> None:
        self._by_id[job_id] = given
        if len(self._by_id) > _MOST:
            del self._by_id[next(iter(self._by_id))]

    def find(self, job_id: bytes, claim: ClaimId, epoch: int) -> Given | None:
        given = self._by_id.get(job_id)
        return given if given is not None and given.epoch == epoch and given.claim == claim else None

    def drop(self, job_id: bytes) -> None:
        self._by_id.pop(job_id, None)

    def forget(self) -> None:
        self._by_id.clear()
