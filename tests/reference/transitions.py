"""Moves a memory store's jobs between states, and maintains their order, keys and joins. The caller must hold the lock."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque

from taskflow.broker import topics
from taskflow.model import transitions, wording
from taskflow.model.clock import Clock, to_microseconds
from taskflow.model.fingerprint import pack_cause
from taskflow.model.ids import id_text
from taskflow.model.record import LIVE, WAITING, Status
from taskflow.model.rules import Rules
from taskflow.model.transitions import MOVES, Event, Transition
from taskflow.model.verdict import append_error, pack_error, unpack_errors
from tests.reference.job import Entry, Fence, StoredJob


class ReferenceTransitions:
    """Applies moves to stored jobs. Heaps are cleaned lazily: an entry counts only while
    the job's state matches it. An entry among the ready jobs must also be the job's latest."""

    def __init__(self, clock: Clock, rules: Rules) -> None:
        self.clock = clock
        self.begin_verb()
        self.rules = rules
        self.jobs: dict[bytes, StoredJob] = {}
        self.ready: defaultdict[str, list[Entry]] = defaultdict(list)
        self.due: list[tuple[int, int, bytes]] = []
        self.expiring: list[tuple[int, bytes]] = []
        self.fading: list[tuple[int, bytes]] = []
        self.kept: defaultdict[tuple[str, bool], list[tuple[int, int, bytes]]] = defaultdict(list)
        self.keys: dict[bytes, list[StoredJob]] = {}
        self.tagged: dict[str, dict[bytes, StoredJob]] = {}
        self.failed: dict[tuple[bytes, str, str], dict[bytes, StoredJob]] = {}
        self.paused: set[str] = set()
        self.counts: defaultdict[str, Counter[Status]] = defaultdict(Counter)
        self.totals: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.to_wake: set[str] = set()
        self.readied = Counter[str]()
        self.ends = deque[bytes]()
        self.ends_dropped = 0
        self._seq = 0

    def begin_verb(self) -> None:
        """Read the clocks once, so that all changes of an operation have the same time."""
        self.now, self.steady = self.clock.wall(), self.clock.steady()

    # --- moves: every change of status goes through here --------------------------------------------

    def move(self, job: StoredJob, event: Event, to: Status | None) -> None:
        """Change the status, and count the move. Raises AssertionError for an illegal move."""
        if to not in MOVES.get((job.status, event), ()):
            raise AssertionError(f"{id_text(job.id)}: {job.status} cannot become {to} by {event}")
        counts = self.counts[job.queue]
        if job.status is not None:
            counts[job.status] -= 1
        if to is not None:
            counts[to] += 1
        job.status = to
        self.totals[job.queue][event] += 1

    def add(self, job: StoredJob, behind: StoredJob | None) -> None:
        """Store a new job. `behind` is the running holder of its key, if there is one; the new job waits for it to end."""
        self.jobs[job.id] = job
        if behind is not None:
            job.awaits += 1
            job.behind = behind.id
            job.waiting_for = wording.waits_behind(behind.id)
        if job.key is not None:
            self.keys.setdefault(job.key, []).append(job)
        self.tag(job)
        self.enter(job, Event.ENQUEUE)

    def tag(self, job: StoredJob) -> None:
        for tag in job.envelope.tags:
            self.tagged.setdefault(tag, {})[job.id] = job

    def untag(self, job: StoredJob) -> None:
        for tag in job.envelope.tags:
            del self.tagged[tag][job.id]
            if not self.tagged[tag]:
                del self.tagged[tag]

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def enter(self, job: StoredJob, event: Event) -> None:
        """Make a job HELD, SCHEDULED or READY, depending on whether it awaits other jobs and on its due time."""
        status = Status.HELD if job.awaits > 0 else Status.SCHEDULED if job.due_at > self.now else Status.READY
        if status is Status.READY:
            self.make_ready(job, event)
            return
        self.watch_expiry(job)
        self.move(job, event, status)
        if status is Status.SCHEDULED:
            entry = (job.due_at, job.seq, job.id)
            heapq.heappush(self.due, entry)
            if self.due[0] == entry:
                self.to_wake.add(topics.DUE)

    def make_ready(self, job: StoredJob, event: Event) -> None:
        self.watch_expiry(job)
        self.move(job, event, Status.READY)
        job.entry = (*job.place, job.id)
        heapq.heappush(self.ready[job.queue], job.entry)
        self.readied[job.queue] += 1

    def watch_expiry(self, job: StoredJob) -> None:
        if job.expires_at is not None:
            heapq.heappush(self.expiring, (job.expires_at, job.id))

    # --- keys and joins ---------------------------------------------------------------------------------

    def holders(self, key: bytes | None) -> tuple[StoredJob | None, StoredJob | None]:
        """Return the waiting job and the running job that hold the key, each None if there is none."""
        if key is None:
            return None, None
        live = self.keys.get(key, ())
        waiting = next((job for job in live if job.status in WAITING), None)
        running = next((job for job in live if job.status is Status.RUNNING), None)
        return waiting, running

    def waiting_behind(self, job: StoredJob) -> StoredJob | None:
        waiting, _ = self.holders(job.key)
        return waiting if waiting is not None and waiting.behind == job.id else None

    def release_key(self, job: StoredJob) -> None:
        key = job.key
        if key is None:
            return
        live = self.keys.get(key, [])
        if job in live:
            live.remove(job)
        for other in live:
            if other.behind == job.id:
                other.behind = other.waiting_for = None
                self.release_awaiting(other)
        if not live:
            self.keys.pop(key, None)

    def release_awaiting(self, held: StoredJob | None) -> None:
        if held is None or held.status is not Status.HELD or (held.behind is not None and held.awaits <= 1):
            return  # the last one counted is the holder of its key, whose end is not that of a joiner
        held.awaits -= 1
        if held.awaits == 0:
            held.due_at = max(held.due_at, self.now)
            self.enter(held, Event.RELEASE)

    # --- the end of a run ----------------------------------------------------------------------------------------

    def release_lease(self, job: StoredJob) -> None:
        """End the job's lease. Every lease ends here."""
        job.claim = None

    def finish(self, job: StoredJob, event: Event, status: Status, reason: str | None = None, *, keep: float | None = None) -> None:
        """End a job, free its key, and release the jobs that await it. `keep` is in seconds; None means the default for that status."""
        now, is_settled = self.now, job.claim is not None and job.settled == Fence(job.epoch, job.claim)
        self.move(job, event, status)
        self.release_lease(job)
        job.reason = reason
        job.waiting_for = None
        job.ended_at = now
        job.fade_at = now + (transitions.keep_for(status, self.rules) if keep is None else to_microseconds(keep))
        heapq.heappush(self.fading, (job.fade_at, job.id))
        heapq.heappush(self.kept[job.queue, status is Status.FAILED], (now, job.seq, job.id))
        if status is Status.FAILED:
            self.failed.setdefault(self._cell_of(job), {})[job.id] = job
        self.release_key(job)
        joins, job.joins = job.joins, ()
        for joined in joins:
            self.release_awaiting(self.jobs.get(joined))
        self.to_wake.add(topics.job(job.id))
        if not is_settled and self.has_end_subscriber():
            self.record_end(job.id)

    def leave_group(self, job: StoredJob) -> None:
        """Remove an ended job from those that have failed, if it is one of them."""
        if job.status is Status.FAILED:
            cell = self._cell_of(job)
            del self.failed[cell][job.id]
            if not self.failed[cell]:
                del self.failed[cell]

    def _cell_of(self, job: StoredJob) -> tuple[bytes, str, str]:
        """Return what a failed job has in common with those with which it is counted: its cause, name and queue."""
        assert job.cause is not None
        return (job.cause, job.envelope.job, job.queue)

    def deploy_of(self, job: StoredJob) -> str:
        """Return the deploy of the worker that has the job. A store with sessions overrides this."""
        return ""

    def has_end_subscriber(self) -> bool:
        """Return True if a living session subscribes to ends without a settlement. A store with sessions overrides this."""
        return False

    def record_end(self, job_id: bytes) -> None:
        """Note that the job has ended without a settlement, for upkeep to tell."""
        if not self.ends:
            self.to_wake.add(topics.DUE)
        self.ends.append(job_id)
        if len(self.ends) > self.rules.max_ends:
            self.ends.popleft()
            self.ends_dropped += 1

    def requeue(self, job: StoredJob, transition: Transition) -> None:
        """Make a job wait again after a run, unless its cancellation or a replacement ends it.

        If the transition has no due time, the job becomes READY in its old place,
        even if the wall clock has been set back to before its due time.
        """
        successor = self.waiting_behind(job)
        transition = transitions.requeue(transition, job.cancel_requested, None if successor is None else successor.id)
        self.release_lease(job)  # before `finish`, so that this end is noted: the verdict does not say it
        if transition.ends_as is not None:
            self.finish(job, transition.event, transition.ends_as, transition.reason)
            return
        if transition.due_at is None:
            self.make_ready(job, transition.event)
        else:
            job.due_at = transition.due_at
            self.enter(job, transition.event)

    def apply(self, job: StoredJob, transition: Transition, *, keep: float | None = None) -> None:
        """Apply a transition to a job whose run has ended. `keep` is in seconds; None means the default for the job's status."""
        job.failures, job.crashes, job.snoozes, job.hand_backs, job.parked_at = transition.counters
        job.waiting_for = transition.waiting_for
        job.cause = transition.cause
        if transition.is_poison:
            job.is_poison, job.reason, job.expires_at = 1, transition.reason, None
        if transition.error is not None:
            packed = b"".join(map(pack_error, job.errors))
            job.errors = unpack_errors(append_error(packed, transition.error.of_run(job.worker, job.run_started_at, self.now)))
        if transition.ends_as is None:
            self.requeue(job, transition)
        else:
            self.finish(job, transition.event, transition.ends_as, transition.reason, keep=keep)

    def hand_back(self, job: StoredJob, *, counts: bool) -> None:
        self.apply(job, transitions.hand_back(job.counters, self.rules, self.now, counts=counts))

    def crash(self, job: StoredJob, died_of: str = "") -> None:
        is_stopping = job.cancel_requested is not None
        has_follow_up = job.envelope.on_failure is not None
        transition = transitions.crash(
            job.counters, self.rules, self.now, worker=job.worker, died_of=died_of, is_stopping=is_stopping, has_follow_up=has_follow_up
        )
        if transition.cause is not None:
            transition = transition._replace(cause=pack_cause(transition.cause, self.deploy_of(job)))
        self.apply(job, transition)

    def bury(self, job: StoredJob) -> None:
        """Drop an ended job, but keep its id and fence for a while: a client may still resend a call that refers to it."""
        assert job.ended_at is not None
        self.leave_group(job)
        self.move(job, Event.DROP, None)
        job.payload = job.result = job.cause = None
        job.errors = ()
        self.untag(job)
        heapq.heappush(self.fading, (job.ended_at + to_microseconds(self.rules.repeat_for), job.id))

    # --- looking ---------------------------------------------------------------------------------------------

    def take_ready(self, queue: str, limit: int) -> list[StoredJob]:
        """Remove and return the first ready jobs in a queue that have not expired, at most `limit`."""
        now, heap = self.now, self.ready[queue]
        taken, passed_over = list[StoredJob](), list[Entry]()
        while len(taken) < limit and (job := self.first_ready(queue)) is not None:
            entry = heapq.heappop(heap)
            if job.is_expired(now):
                passed_over.append(entry)
            else:
                taken.append(job)
        for entry in passed_over:
            heapq.heappush(heap, entry)
        return taken

    def first_ready(self, queue: str) -> StoredJob | None:
        """Return the first ready job in a queue, or None. Outdated entries before it are removed."""
        heap = self.ready[queue]
        while heap:
            if self.is_ready(heap[0]):
                return self.jobs[heap[0][-1]]
            heapq.heappop(heap)
        return None

    def is_ready(self, entry: Entry) -> bool:
        """Return True if the entry is current."""
        job = self.jobs.get(entry[-1])
        return job is not None and job.entry is entry and job.status is Status.READY

    def ready_queues(self) -> list[str]:
        return sorted(name for name, counts in self.counts.items() if counts[Status.READY] and name not in self.paused)

    def next_due(self) -> int | None:
        while self.due:
            due_at, _, job_id = self.due[0]
            job = self.jobs.get(job_id)
            if job is not None and job.status is Status.SCHEDULED and job.due_at == due_at:
                return due_at
            heapq.heappop(self.due)
        return None

    def live_count(self) -> int:
        return sum(counts[status] for counts in self.counts.values() for status in LIVE)
