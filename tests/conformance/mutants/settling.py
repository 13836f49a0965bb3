"""What a settlement does, and how often."""

from __future__ import annotations

from collections.abc import Sequence

from taskflow.model.record import Status
from taskflow.model.transitions import Event, Transition
from taskflow.model.verdict import Retried, Settled, Settlement
from taskflow.model.wording import poison
from tests.conformance.mutants.mutant import Mutant
from tests.reference.job import Fence, StoredJob


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

    def apply_verdict(self, job: StoredJob, settlement: Settlement) -> None:
        payload = job.payload
        super().apply_verdict(job, settlement)
        job.payload = payload


class OutcomesResetNothing(Mutant):
    breaks = frozenset({"settle_resets", "hand_back_backoff", "crash_backoff"})
    because = "a long-lived job that snoozes collects crashes over weeks until it is called poison"

    def apply(self, job: StoredJob, transition: Transition, *, keep: float | None = None) -> None:
        resets = ("crashes", "hand_backs")
        counters = transition.counters._replace(**{name: max(getattr(job, name), getattr(transition.counters, name)) for name in resets})
        super().apply(job, transition._replace(counters=counters), keep=keep)


class HandsBackToTheEnd(Mutant):
    breaks = frozenset({"hand_back_place", "settle_outcomes"})
    because = "every deploy sends what it interrupts to the end of the queue"

    def apply(self, job: StoredJob, transition: Transition, *, keep: float | None = None) -> None:
        if transition.event is Event.HAND_BACK and job.cancel_requested is None and self.waiting_behind(job) is None:
            job.due_at, job.seq = self.clock.wall(), self.next_seq()
        super().apply(job, transition, keep=keep)


class HandBacksArePoison(Mutant):
    breaks = frozenset({"hand_back_backoff", "outage"})
    because = "eleven deploys during one long job failed it, though each run went well until then"

    def apply(self, job: StoredJob, transition: Transition, *, keep: float | None = None) -> None:
        if transition.event is Event.HAND_BACK and transition.counters.hand_backs > 10 and job.cancel_requested is None:
            why = poison("handed back too often")
            transition = transition._replace(event=Event.CRASH, ends_as=Status.FAILED, reason=why, is_poison=True)
        super().apply(job, transition, keep=keep)
