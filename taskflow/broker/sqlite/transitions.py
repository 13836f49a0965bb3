"""Moves a store's jobs between states within a transaction, one job at a time, and maintains their keys and joins.

The rules are those of `memory/transitions.py`, with partial indexes in place of its heaps. Verbs that can process a batch in one step do so
themselves, and count their moves in the same tally.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taskflow.broker.sqlite.job_table import JobTable
from taskflow.broker.sqlite.row import JobRow, all_columns, storable, text_of
from taskflow.model import transitions, wording
from taskflow.model.clock import to_microseconds
from taskflow.model.failure_cause import pack_cause
from taskflow.model.ids import id_text
from taskflow.model.job_schema import has_follow_up, has_tags
from taskflow.model.record import CODES, Status
from taskflow.model.transitions import MOVES, Event, Transition
from taskflow.model.verdict import append_error


class Transitions(JobTable):
    """Applies moves to stored jobs, for one connection."""

    # --- moves: every change of a single job's status goes through here -----------------------------------------

    def move(self, job: JobRow, event: Event, to: Status | None) -> None:
        """Change the status, and count the move. The caller saves the job. Raises AssertionError for an illegal move."""
        if to not in MOVES.get((job.status, event), ()):
            raise AssertionError(f"{id_text(job.id)}: {job.status} cannot become {to} by {event}")
        code = None if to is None else CODES[to]
        self.tally.move(job.queue, event, job.code, code)
        job.code = code

    def add(self, job: JobRow, behind: JobRow | None) -> None:
        """Store a new job. `behind` is the running holder of its key, if there is one; the new job waits for it to end."""
        if behind is not None:
            job.awaits += 1
            job.behind = behind.id
            job.waiting_for = wording.waits_behind(behind.id)
        self._place(job, Event.ENQUEUE)
        self.connection.execute(self.sql["add_job"], all_columns(job))

    def enter(self, job: JobRow, event: Event) -> None:
        """Make a job HELD, SCHEDULED or READY, depending on whether it awaits other jobs and on its due time."""
        self._place(job, event)
        self.save(job)

    def _place(self, job: JobRow, event: Event) -> None:
        status = transitions.waiting_status(job.awaits, job.due_at, self.now)
        if status is Status.READY:
            self.make_ready(job, event)
            return
        self.move(job, event, status)
        if status is Status.SCHEDULED:
            self.announcement.add_due(job.due_at)

    def make_ready(self, job: JobRow, event: Event) -> None:
        """Make a job READY. The caller saves it."""
        self.move(job, event, Status.READY)
        self.announce_ready(job.queue)

    def first_ready_queues(self, limit: int) -> list[str]:
        return [name for (name,) in self.connection.execute(self.sql["first_ready_queues"], (limit,))]

    def ready_in(self, queue: str) -> int:
        """Return the number of ready jobs in a queue, or 0 if it is paused."""
        row = self.connection.execute(self.sql["ready_in_queue"], (queue,)).fetchone()
        return 0 if row is None else int(row[0])

    def next_due(self) -> Any:
        [(due_at,)] = self.connection.execute(self.sql["next_due"])
        return due_at

    # --- keys and joins -----------------------------------------------------------------------------------------

    def holders(self, key: bytes | None) -> tuple[JobRow | None, JobRow | None]:
        """Return the waiting job and the running job that hold the key, each None if there is none."""
        if key is None:
            return None, None
        return self._first("waiting_holder", key), self._first("running_holder", key)

    def waiting_behind(self, job: JobRow) -> JobRow | None:
        waiting = None if job.key is None else self._first("waiting_holder", job.key)
        return waiting if waiting is not None and waiting.behind == job.id else None

    def release_key(self, job: JobRow) -> None:
        if job.key is None:
            return
        for other in self.jobs("waiting_behind", job.key, job.id):
            other.behind = other.waiting_for = None
            self.save(other)
            self.release_awaiting(other)

    def release_awaiting(self, held: JobRow | None) -> None:
        if held is None or held.status is not Status.HELD or (held.behind is not None and held.awaits <= 1):
            return  # the last one counted is the holder of its key, whose end is not that of a joiner
        held.awaits -= 1
        if held.awaits == 0:
            held.due_at = max(held.due_at, self.now)
            self.enter(held, Event.RELEASE)
        else:
            self.save(held)

    # --- the end of a run ----------------------------------------------------------------------------------------

    def release_lease(self, job: JobRow) -> None:
        """End the job's lease. Only plain successes end elsewhere, as a batch (`settle_cached`). The caller saves the job."""
        job.claim = None

    def finish(self, job: JobRow, event: Event, status: Status, reason: str | None = None, *, keep: float | None = None) -> None:
        """End a job, free its key, and release the jobs that await it. `keep` is in seconds; None means the default for that status."""
        self.move(job, event, status)
        self.release_lease(job)
        joined, job.joins = job.joined_ids(), None
        job.waiting_for = None
        job.reason = None if reason is None else storable(reason)
        job.ended_at = self.now
        job.fade_at = self.now + (transitions.keep_for(status, self.rules) if keep is None else to_microseconds(keep))
        self.save(job)
        self.release_key(job)
        for job_id in joined:
            self.release_awaiting(self.job(job_id))
        self.announcement.ended.add(job.id)
        if job.seq != self.settled_seq:
            self._ends.append(job.id)

    def requeue(self, job: JobRow, transition: Transition) -> None:
        """Make a job wait again after a run, unless its cancellation or a replacement ends it.

        If the transition has no due time, the job becomes READY in its old place,
        even if the wall clock has been set back to before its due time.
        """
        successor = self.waiting_behind(job)
        transition = transitions.requeue(transition, text_of(job.cancel_requested), None if successor is None else successor.id)
        if transition.ends_as is not None:
            self.settled_seq = None  # so that this end is noted: the verdict does not say it
            self.finish(job, transition.event, transition.ends_as, transition.reason)
            return
        self.release_lease(job)
        if transition.due_at is None:
            self.make_ready(job, transition.event)
            self.save(job)
        else:
            job.due_at = transition.due_at
            self.enter(job, transition.event)

    def apply(self, job: JobRow, transition: Transition, *, keep: float | None = None) -> None:
        """Apply a transition to a job whose run has ended. `keep` is in seconds; None means the default for the job's status."""
        job.failures, job.crashes, job.snoozes, job.hand_backs, job.parked_at = transition.counters
        job.waiting_for = None if transition.waiting_for is None else storable(transition.waiting_for)
        job.cause = transition.cause
        if transition.is_poison:
            job.is_poison, job.reason, job.expires_at = 1, storable(transition.reason or ""), None
        if transition.error is not None:
            job.errors = append_error(job.errors, transition.error.of_run(text_of(job.worker), job.run_started_at, self.now))
        if transition.ends_as is None:
            self.requeue(job, transition)
        else:
            self.finish(job, transition.event, transition.ends_as, transition.reason, keep=keep)

    def hand_back(self, job: JobRow, *, counts: bool) -> None:
        self.apply(job, transitions.hand_back(job.counters, self.rules, self.now, counts=counts))

    def crash(self, job: JobRow, died_of: str = "", *, deploy: Callable[[], str]) -> None:
        """End the lease of a lost worker, which ran this deploy."""
        is_stopping = job.cancel_requested is not None
        worker, follows = text_of(job.worker), has_follow_up(job.extras)
        transition = transitions.crash(
            job.counters, self.rules, self.now, worker=worker, died_of=died_of, is_stopping=is_stopping, has_follow_up=follows
        )
        if transition.cause is not None:
            transition = transition._replace(cause=pack_cause(transition.cause, deploy()))
        self.apply(job, transition)

    def bury(self, job: JobRow) -> None:
        """Drop an ended job, but keep its id and fence for a while: a client may still resend a call that refers to it."""
        assert job.ended_at is not None
        self.move(job, Event.DROP, None)
        self.connection.execute(self.sql["bury_job"], (job.ended_at + to_microseconds(self.rules.repeat_for), job.seq))
        if has_tags(job.extras):
            self.connection.execute(self.sql["drop_tags"], (job.seq,))
