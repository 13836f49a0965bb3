"""What a settlement does, and how often."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from taskflow.broker.memory.job import Fence, StoredJob
from taskflow.model.record import WAITING, Event, Status
from taskflow.model.verdict import Retried, Settled, Settlement, Snoozed
from tests.conformance.mutants.mutant import Mutant


class RepeatIsStale(Mutant):
    breaks = frozenset({"settle_repeat"})
    because = "a lost reply turns into STALE, and the worker thinks that its run was in vain"

    def _took_effect(self, job: StoredJob, fence: Fence) -> bool:
        return False


class RepeatCountsAgain(Mutant):
    breaks = frozenset({"settle_repeat"})
    because = "the client resends, and one failure uses two attempts (redis-py#261: one INCR ran three times)"

    def _settle_one(self, settlement: Settlement) -> Settled:
        job = self.jobs.get(settlement.id)
        fence = Fence(settlement.epoch, settlement.claim)
        if job is not None and not self._holds(job, fence) and self._took_effect(job, fence) and isinstance(settlement.verdict, Retried):
            job.failures += 1
        return super()._settle_one(settlement)


class BatchFailsTogether(Mutant):
    breaks = frozenset({"settle_batch", "settle_repeat"})
    because = "one stale item makes the whole batch stale"

    def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        jobs = [self.jobs.get(settlement.id) for settlement in settlements]
        held = [
            job is not None and (self._holds(job, fence) or self._took_effect(job, fence))
            for job, fence in zip(jobs, (Fence(settlement.epoch, settlement.claim) for settlement in settlements), strict=True)
        ]
        return super().settle(settlements) if all(held) else [Settled.STALE] * len(held)


class FollowsUpWhenStale(Mutant):
    breaks = frozenset({"settle_follow_ups"})
    because = "follow-ups are sent apart from the settlement (streaq): a zombie's go out as well"

    def _settle_one(self, settlement: Settlement) -> Settled:
        settled = super()._settle_one(settlement)
        if settled is Settled.STALE:
            for follow_up in settlement.follow_ups:
                self._enqueue_one(follow_up)
        return settled


class KeepsPayloads(Mutant):
    breaks = frozenset({"settle_forgets_payload"})
    because = "the store grows by what no run will ever read again"

    def _apply(self, job: StoredJob, settlement: Settlement) -> None:
        payload = job.payload
        super()._apply(job, settlement)
        job.payload = payload


class ForgetsTheMark(Mutant):
    breaks = frozenset({"settle_marked", "hand_back_backoff"})
    because = "a cancelled job is retried, since the mark lay on the run and not on the job"

    def _apply(self, job: StoredJob, settlement: Settlement) -> None:
        if not settlement.verdict.is_final:
            job.cancel_requested = None
        super()._apply(job, settlement)


class OutcomesResetNothing(Mutant):
    breaks = frozenset({"settle_resets", "hand_back_backoff", "crash_backoff"})
    because = "a long-lived job that snoozes collects crashes over weeks until it is called poison"

    def _progressed(self, job: StoredJob) -> None:
        job.parked_at = None


class SnoozeIsAFailure(Mutant):
    breaks = frozenset({"settle_outcomes", "settle_marked", "key_gives_way", "claim_fence"})
    because = "waiting on purpose uses attempts up"

    def _apply(self, job: StoredJob, settlement: Settlement) -> None:
        if isinstance(settlement.verdict, Snoozed):
            job.failures += 1
        super()._apply(job, settlement)


class LosesTheLastProgress(Mutant):
    breaks = frozenset({"settle_progress"})
    because = "progress goes up with the beats only, and a job ends at the 97 % of the last one"

    def _settle_one(self, settlement: Settlement) -> Settled:
        return super()._settle_one(msgspec.structs.replace(settlement, progress=None))


class HandsBackToTheEnd(Mutant):
    breaks = frozenset({"hand_back_place", "settle_outcomes"})
    because = "every deploy sends what it interrupts to the end of the queue"

    def _hand_back(self, job: StoredJob, *, counts: bool) -> None:
        if job.cancel_requested is None and self.waiting_behind(job) is None:
            job.due_at, job.seq = self.clock.wall(), self.next_seq()
        super()._hand_back(job, counts=counts)


class HandsBackWithoutAPause(Mutant):
    breaks = frozenset({"hand_back_backoff"})
    because = "the graceful hand-back went round every counter, and one job cycled a fleet for 17 hours (activepieces#15130)"

    def _hand_back(self, job: StoredJob, *, counts: bool) -> None:
        job.hand_backs += counts
        self.wait_again(job, Event.HAND_BACK)


class HandBacksArePoison(Mutant):
    breaks = frozenset({"hand_back_backoff", "outage"})
    because = "eleven deploys during one long job failed it, though each run went well until then"

    def _hand_back(self, job: StoredJob, *, counts: bool) -> None:
        super()._hand_back(job, counts=counts)
        if job.hand_backs > 10 and job.status in WAITING:
            job.status = Status.RUNNING
            self._poison(job, "handed back too often")
