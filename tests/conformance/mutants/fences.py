"""The fence: whose word on a run counts."""

from __future__ import annotations

import msgspec

from taskflow.model.record import Status
from taskflow.model.transitions import Event
from taskflow.model.verdict import Settled, Settlement
from tests.conformance.mutants.mutant import Mutant
from tests.reference.console import ReferenceStore
from tests.reference.job import StoredJob


class _Forwarding(ReferenceStore):
    """Treats a settlement that it `accepts` as one of the job's present run."""

    def accepts(self, job: StoredJob, settlement: Settlement) -> bool:
        return True

    def _settle_one(self, settlement: Settlement) -> Settled:
        job = self.jobs.get(settlement.id)
        if job is not None and job.status is Status.RUNNING and self.accepts(job, settlement):
            assert job.claim is not None
            settlement = msgspec.structs.replace(settlement, epoch=job.epoch, claim=job.claim)
        return super()._settle_one(settlement)


class SettlesByIdAndState(_Forwarding, Mutant):
    breaks = frozenset({"settle_stale", "settle_repeat"})
    because = "WHERE id = $1 AND state = 'running': it runs, so it must be mine (Oban, Chancy, Procrastinate)"


class SettlesById(_Forwarding, Mutant):
    breaks = frozenset({"settle_stale", "settle_repeat", "settle_follow_ups"})
    because = "UPDATE ... WHERE id = $1, whatever its state: a zombie ends its successor's run (river#1302, solid_queue#589)"

    def _settle_one(self, settlement: Settlement) -> Settled:
        job = self.jobs.get(settlement.id)
        if job is not None and job.status is Status.READY:
            self.move(job, Event.CLAIM, Status.RUNNING)
            job.claim = settlement.claim
        return super()._settle_one(settlement)


class SettlesByEpoch(_Forwarding, Mutant):
    breaks = frozenset({"settle_stale"})
    because = "a store that lost its tail hands the same epoch out again"

    def accepts(self, job: StoredJob, settlement: Settlement) -> bool:
        return job.epoch == settlement.epoch


class SettlesByClaimId(_Forwarding, Mutant):
    breaks = frozenset({"settle_stale"})
    because = "the epoch is not compared"

    def accepts(self, job: StoredJob, settlement: Settlement) -> bool:
        return job.claim == settlement.claim


class RefusesTheLate(Mutant):
    breaks = frozenset({"settle_late"})
    because = "a run that has ended is thrown away because its session is past its ttl, though nobody else has the job"

    def _settle_one(self, settlement: Settlement) -> Settled:
        state = self.sessions.get(settlement.claim.session)
        if state is not None and (state.dead_at is not None or self._has_lapsed(state)) and settlement.claim in state.leases:
            return Settled.STALE
        return super()._settle_one(settlement)
