"""Implements `upkeep`, which readies due jobs, reaps dead sessions, ends expired jobs, and drops ended jobs that need not be kept."""

from __future__ import annotations

import heapq
import math

import msgspec

from taskflow.broker.protocol import MAX_ENDS, UpkeepResult
from taskflow.model import wording
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.record import ENDED, WAITING, Status
from taskflow.model.session import Beat, BeatAnswer, WorkHint
from taskflow.model.transitions import Event
from tests.reference.job import StoredJob
from tests.reference.schedules import ScheduleStore
from tests.reference.store import SessionState


class UpkeepStore(ScheduleStore):
    """A store with every operation, including upkeep."""

    def upkeep(self, limit: int, *, ends: bool = False) -> UpkeepResult:
        living = self._living_ones()
        if any(self._is_of_another_boot(state) or self.steady - state.last_beat_at > state.ttl for state in living):
            self._notice_silence(min(state.ttl for state in living))
        reaped = self._reap()
        left = limit
        moves = list[int]()
        for duty in (self._ready_due, self._release_leases, self._expire, self._drop):
            moves.append(duty(left))
            left -= moves[-1]
        readied, released, expired, dropped = moves
        offers = self.offers()
        ended, ends_dropped = self.take_ends() if ends else ((), 0)
        return UpkeepResult(
            readied=readied,
            reaped=reaped,
            released=released,
            expired=expired,
            dropped=dropped,
            next_in=0.0 if left <= 0 or (ends and self.ends) else self._next_in(),
            offers=offers,
            ended=ended,
            ends_dropped=ends_dropped,
        )

    def take_ends(self) -> tuple[tuple[bytes, ...], int]:
        """Remove and return the first ends that were noted, and the number of those that were dropped."""
        dropped, self.ends_dropped = self.ends_dropped, 0
        return tuple(self.ends.popleft() for _ in range(min(MAX_ENDS, len(self.ends)))), dropped

    def beat(self, beat: Beat) -> BeatAnswer:
        answer = super().beat(beat)
        return msgspec.structs.replace(answer, work_hint=self._work_hint(beat.session)) if beat.looks else answer

    def _work_hint(self, session_id: bytes) -> WorkHint:
        has_ends = bool(self.ends) and self.sessions[session_id].session.wants_ends
        is_dying = any(state.leases for state in self.sessions.values() if not self._lives(state))
        at = [heap[0][0] for heap in (self.expiring, self.fading) if heap]
        waits = [*self._waits(), *(max(0.0, to_seconds(instant - self.now)) for instant in at)]
        return WorkHint(is_ready=bool(self.ready_queues()), due_in=0.0 if is_dying or has_ends else min(waits, default=math.inf))

    def _next_in(self) -> float:
        """Return the seconds until the caller's next upkeep. With n live sessions, each calls it every
        n * `upkeep_every` seconds, or earlier if a job becomes due or a session lapses."""
        return min([self.rules.upkeep_every * max(1, len(self._living_ones())), *self._waits()])

    def _waits(self) -> list[float]:
        """Return the seconds until the next job is due, until the next schedule is due, and until each session lapses."""
        waits = [to_seconds(state.beat_at + state.ttl + 1 - self.steady) for state in self._living_ones()]
        waits += [to_seconds(at - self.now) for at in (self.next_due(), self.next_look()) if at is not None]
        return [max(0.0, wait) for wait in waits]

    def _living_ones(self) -> list[SessionState]:
        return [state for state in self.sessions.values() if self._lives(state)]

    def _ready_due(self, limit: int) -> int:
        now, moved = self.now, 0
        while moved < limit and (due_at := self.next_due()) is not None and due_at <= now:
            _, _, job_id = heapq.heappop(self.due)
            self.enter(self.jobs[job_id], Event.DUE)
            moved += 1
        return moved

    # --- dead sessions ------------------------------------------------------------------------------------

    def _reap(self) -> int:
        """Mark lapsed sessions as dead, and return their number. From then on their
        claims are refused, so no new lease can be missed when their leases are released."""
        lapsed = [state for state in self._living_ones() if self._has_lapsed(state)]
        for state in lapsed:
            state.is_spared |= self._is_of_another_boot(state)
            self._kill_session(state)
        return len(lapsed)

    def _has_lapsed(self, state: SessionState) -> bool:
        return self._is_of_another_boot(state) or self.steady - state.beat_at > state.ttl

    def _is_of_another_boot(self, state: SessionState) -> bool:
        """Return True if the machine has rebooted since the session was
        registered. Its worker is gone, and its steady times are meaningless."""
        return state.boot_id != self.clock.boot_id()

    def _release_leases(self, limit: int) -> int:
        dead = [state for state in self.sessions.values() if state.dead_at is not None]
        dying = sorted(dead, key=lambda state: (state.dead_at, state.session.id))
        released = [(state, state.leases[claim]) for state in dying for claim in sorted(state.leases)][:limit]
        for state, job in released:
            if state.is_spared:
                self.hand_back(job, counts=True)
            else:
                self.crash(job)
        self._forget_sessions(dying)
        return len(released)

    def _forget_sessions(self, dying: list[SessionState]) -> None:
        long_ago = self.now - to_microseconds(self.rules.repeat_for)
        for state in dying:
            if not state.leases and state.dead_at is not None and state.dead_at < long_ago:
                del self.sessions[state.session.id]

    # --- expiry and retention ------------------------------------------------------------------------------

    def _expire(self, limit: int) -> int:
        now, moved = self.now, 0
        while self.expiring and self.expiring[0][0] <= now and moved < limit:
            job = self.jobs.get(heapq.heappop(self.expiring)[1])
            if job is not None and job.status in WAITING and job.is_expired(now):
                self.finish(job, Event.EXPIRE, Status.CANCELLED, wording.EXPIRED)
                moved += 1
        return moved

    def _drop(self, limit: int) -> int:
        """Drop ended jobs that have been kept long enough or exceed their queue's cap, keeping only their ids and fences. Delete ids
        that no resent call can refer to any more. Return the number of jobs dropped."""
        now, moved = self.now, self._drop_over_cap(limit)
        while self.fading and self.fading[0][0] <= now and moved < limit:
            job = self.jobs.get(heapq.heappop(self.fading)[1])
            if job is None:
                continue
            if job.status in ENDED and (job.fade_at or 0) <= now:
                self.bury(job)
                moved += 1
            elif job.status is None and self._is_forgettable(job, now):
                del self.jobs[job.id]
        return moved

    def _is_forgettable(self, job: StoredJob, now: int) -> bool:
        return job.ended_at is not None and job.ended_at + to_microseconds(self.rules.repeat_for) <= now

    def _drop_over_cap(self, limit: int) -> int:
        moved = 0
        for queue, are_failed in sorted(self.kept):  # by queue, with the failed jobs of each after the others
            statuses = (Status.FAILED,) if are_failed else (Status.SUCCEEDED, Status.CANCELLED)
            while (job := self._oldest_kept(queue, are_failed)) is not None and moved < limit:
                if sum(self.counts[queue][status] for status in statuses) <= self.rules.kept_per_queue:
                    break
                self.bury(job)
                self.totals[queue][wording.DROPPED_OVER_CAP] += 1
                moved += 1
        return moved

    def _oldest_kept(self, queue: str, are_failed: bool) -> StoredJob | None:
        """Return the oldest kept job, or None. Entries of jobs that are gone or live again are removed."""
        oldest = self.kept[queue, are_failed]
        while oldest:
            ended_at, _, job_id = oldest[0]
            job = self.jobs.get(job_id)
            if job is not None and job.status in ENDED and (job.status is Status.FAILED) == are_failed and job.ended_at == ended_at:
                return job
            heapq.heappop(oldest)
        return None
