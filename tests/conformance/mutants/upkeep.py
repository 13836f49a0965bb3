"""What happens as time passes, and ends without a settlement."""

from __future__ import annotations

import msgspec

from taskflow.broker import topics
from taskflow.model.record import Status
from taskflow.model.transitions import Event
from tests.conformance.mutants.mutant import Mutant
from tests.reference.job import StoredJob


class ComesInItsTurn(Mutant):
    breaks = frozenset({"upkeep_reaps"})
    because = "a dead worker's jobs wait for the fleet's next upkeep, seconds longer than the documented ttl"

    def _next_in(self) -> float:
        sessions, self.sessions = self.sessions, {}
        turns = max(1, sum(state.dead_at is None for state in sessions.values()))
        next_in = super()._next_in()
        self.sessions = sessions
        return min(next_in, self.rules.upkeep_every) * turns if self.next_due() is None else next_in


class CrashIsAFailure(Mutant):
    breaks = frozenset({"crash_backoff", "poison_follow_up"})
    because = "a deploy or a full memory uses up attempts of jobs that did nothing wrong"

    def crash(self, job: StoredJob, died_of: str = "") -> None:
        job.failures += 1
        super().crash(job, died_of)


class CrashesForEver(Mutant):
    breaks = frozenset(
        {
            *(
                "crash_poison",
                "poison_follow_up",
                "beat_died",
                "key_gives_way",
            ),
            *("page_lists", "admin_retry", "admin_failures_poison", "ends_heard"),
        }
    )
    because = "the counter lives in the process that is killed (sidekiq#3400, faktory#99)"

    def crash(self, job: StoredJob, died_of: str = "") -> None:
        rules, self.rules = self.rules, msgspec.structs.replace(self.rules, max_crashes=1_000_000)
        super().crash(job, died_of)
        self.rules = rules


class CrashForgetsTheMark(Mutant):
    breaks = frozenset({"key_gives_way", "crash_marked", "poison_follow_up"})
    because = "a cancelled job runs again when its worker ends"

    def crash(self, job: StoredJob, died_of: str = "") -> None:
        job.cancel_requested = None
        super().crash(job, died_of)


class OutageIsADeath(Mutant):
    breaks = frozenset({"outage"})
    because = "the whole fleet is reaped after a failover of half a minute"

    def _notice_silence(self, ttl: int) -> None:
        pass


class ReadiesAtTheEnd(Mutant):
    breaks = frozenset({"upkeep_due", "enqueue_order"})
    because = "a job's place depends on when upkeep runs"

    def enter(self, job: StoredJob, event: Event) -> None:
        if event is Event.DUE:
            job.due_at = self.clock.wall()
        super().enter(job, event)


class ForgetsTombstones(Mutant):
    breaks = frozenset({"upkeep_drops", "admin_purge", "admin_drop", "settle_repeat"})
    because = "a job that is not kept is forgotten at once, and a resent enqueue runs it twice"

    def _is_forgettable(self, job: StoredJob, now: int) -> bool:
        return True

    def bury(self, job: StoredJob) -> None:
        super().bury(job)
        self.jobs.pop(job.id, None)


class DropsNothing(Mutant):
    breaks = frozenset({"upkeep_drops", "upkeep_bounded", "admin_queues", "tags_dropped", "admin_failures_exact", "admin_metrics"})
    because = "keys that never expire (bull#416, celery#436)"

    def _drop(self, limit: int) -> int:
        return self._drop_over_cap(limit)


class CapsAllTogether(Mutant):
    breaks = frozenset({"upkeep_caps"})
    because = "a flood of successes displaces failures that still have to be investigated"

    def _drop_over_cap(self, limit: int) -> int:
        moved = 0
        for job in sorted(self.jobs.values(), key=lambda job: job.ended_at or 0):
            ended = self.counts[job.queue][Status.SUCCEEDED] + self.counts[job.queue][Status.FAILED]
            if moved < limit and job.status in (Status.SUCCEEDED, Status.FAILED) and ended > self.rules.kept_per_queue:
                self.bury(job)
                self.totals[job.queue]["dropped over the cap"] += 1
                moved += 1
        return moved


class NeverExpires(Mutant):
    breaks = frozenset({"upkeep_expires", "upkeep_bounded", "key_released", "joins", "listen_ended"})
    because = "an expired job is skipped, and kept for ever"

    def _expire(self, limit: int) -> int:
        return 0


class HearsSettlementsToo(Mutant):
    breaks = frozenset({"ends_settled", "ends_heard"})
    because = "the worker that settled the job calls the hook, and so does upkeep: the customer gets two mails"

    def finish(self, job: StoredJob, event: Event, status: Status, reason: str | None = None, *, keep: float | None = None) -> None:
        settled, job.settled = job.settled, None
        super().finish(job, event, status, reason, keep=keep)
        job.settled = settled


class HearsWithoutEars(Mutant):
    breaks = frozenset({"ends_unheard", "admin_purge", "admin_purge_tag", "tags_dropped", "ends_purged"})
    because = "ends are recorded for a hook that no application has, and are never read"

    def has_end_subscriber(self) -> bool:
        return True


class NotesWithoutBound(Mutant):
    breaks = frozenset({"ends_bounded"})
    because = "the subscribed workers are stuck, and the list fills the store"

    def record_end(self, job_id: bytes) -> None:
        if not self.ends:
            self.to_wake.add(topics.DUE)
        self.ends.append(job_id)
