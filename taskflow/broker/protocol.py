"""The contract for all brokers. Each clause has a name in brackets; the conformance test of that name runs on every broker.

Every item of a call is atomic: it takes effect as a whole or not at all. An `enqueue` and a claim are one item each. In other calls, each
settlement, job, definition, firing and move of upkeep is an item. After `BrokerUnavailable`, every operation may be sent again for up to
60 s without harm. Time is the store's time: clients send durations. All methods may be called from any running event loop
in the process. Several processes may share a store, unless it is in memory.

A store may contain anything: other programs write to it, disks fail, releases differ. No store has to correct counts or indexes after
another program's write.
  [unreadable_row] A value that no broker could have stored affects only its own job or session, and stops no operation. Such a job ends
    FAILED: `Lease.unreadable` and `Record.unreadable` name the field, or the part of the record that has it, and hold the value's first
    bytes. Such a session lives on with a default instead of the value, or is reaped. (The memory broker holds objects that no other
    program can write.)

**enqueue** adds envelopes in order, and returns one answer for each.
  [enqueue_adds] A new id is Added: HELD while it awaits other jobs, SCHEDULED until its time, otherwise READY.
  [enqueue_repeat] A known id, ended or not, adds nothing: it is Refused with that id, because of "id".
  [enqueue_clash] If the known job differs, the envelope is Refused because of "clash" instead. Until the known job is dropped, its name,
    queue and key are compared, and so is its payload unless the job has succeeded.
  [enqueue_order] Ready jobs are claimed by priority (higher first), then by the time they became ready, then in order of arrival.
  [enqueue_past] A time in the past means now.
  [tags_kept] A job keeps its tags until it is dropped, whatever happens to it. Its leases and records show them.
  [tags_dropped] Once a job is dropped, no index has an entry for its tags. A job without tags has no entry in such an index.
  [key_keeps] While a live job has the key, another job is Refused because of "key", with the id of the waiting holder, or of the running
    holder if none is waiting.
  [key_cancelled] A running holder that was asked to stop causes no refusal. Unless there is also a waiting holder, the new job is Added,
    and waits as in [key_waits_behind]. Only an operator's retry of an ended job is refused because of such a holder.
  [key_neighbours] A refused item does not affect the others of its batch.
  [key_released] An ended job has no key, however it ended.
  [key_survives_retry] A job that waits for its retry keeps its key.
  [key_replaces] With REPLACE, the waiting holder becomes CANCELLED, "replaced by ID", and the new job is Added with its own id.
  [key_waits_behind] With REPLACE while the holder runs, the new job is HELD until the holder is no longer RUNNING. The new job is released
    before the operation that ends that run returns, or by the next upkeep. Its record shows the holder as `behind`. Jobs that name it in
    `joins` do not release it earlier.
  [throttle_first] For `throttle` seconds after it was added, a job with `throttle` represents later calls with its key and `throttle`. They
    are Refused because of "key", with its id, even if it has ended, was purged or is forgotten. Other calls see live holders only.
  [debounce_last] With DEBOUNCE, a waiting holder gets the call's payload and opaque fields, tags, limits and expiry. It keeps its id, its
    queue, its priority and the jobs that it awaits or that await it, and its counters are reset. If it is not READY, or has other limits
    than the call, it becomes due `after` seconds from now, but no later than `at_most` seconds after it was created. The call is Refused
    because of "key", with the holder's id, and so is a repeated call within `repeat_for`, which changes nothing. A running holder is
    handled as with REPLACE.
  [key_gives_way] A running job that would wait again while a replacement waits for it becomes CANCELLED, "replaced by ID".
  [enqueue_full] If the store has no room, enqueue raises StoreFull and adds none of the batch. All other operations still work. (On SQLite
    and PostgreSQL, a full disk stops all operations that write. They raise BrokerUnavailable until there is room.)
  [joins] A HELD job with `awaits` n is released when n jobs that name it in `joins` have ended, with any outcome. This happens before the
    operation that ends the last one returns, or by the next upkeep.

**flows**: one `enqueue` or one firing adds all jobs of a flow. `member` is a job's place among these jobs, with the scope of its failure.
`ties` define what the job's end means for the jobs in its `joins`. The consequences take effect before the operation that ends the job
returns, or by later calls of upkeep.
  [flow_whole] If a call adds one flow, and one of its ids is known, no job is added, because some of the other ids may have been forgotten.
  [flow_released] A HELD job is released when all jobs of its flow that name it in `joins` have succeeded. Other ends do not count.
  [flow_result] If a tie has a number, the step that ends a run as SUCCEEDED leaves the result for the awaiting job, whatever `keep_for`
    says. `notes` returns the results by their numbers, with at most about 4 MiB or one result in an answer. They are dropped when the job
    that received them succeeds or is dropped.
  [flow_fells] If a job ends without success, the waiting jobs of its scope are CANCELLED, and kept as long as a failed job. Their reason
    names the job, and `cancelled_by` is its id. Running jobs continue. A flow's job that was cancelled individually is kept as long.
  [flow_collects] For a tie that `collects`, every end counts, and a failure takes the place of the result. A job that was cancelled because
    of another job of the same scope passes that job's failure on.
  [flow_redo] If an operator retries a job, the jobs that its failure cancelled wait again. Each is HELD until the jobs that it awaits have
    succeeded, and keeps its time and the results that it has. If the flow has another failure, that one cancels them again. A job that
    awaits a job which was dropped, or which nothing restores, is CANCELLED. `retry` returns CANCELLED_AGAIN for jobs that end again in this
    way. The failure is also taken back from jobs that collect failures, unless they have begun.

**limits** of a job are gates, which it passes before it is READY. All jobs that have a gate with the same id share it.
  [gate_takes] A job that would become READY takes a slot of each of its gates. If one is full, the job is SCHEDULED instead, without a
    future due time, and `waiting_for` shows the limit. No claim leases it, and it holds up no other job.
  [gate_all_or_none] A job that has to wait takes no slot. It waits at one full gate. When its turn comes there, it may find another gate
    full, and then waits there. The next job at the first gate gets the slot.
  [gate_passes_on] A job that is no longer READY or RUNNING gives its slots back. The step that ends its run or its wait hands each slot to
    the first waiting job, by priority, due time and arrival. A job that returns to its place in its queue at once keeps its slots.
  [gate_rate] A gate with a period is a rate. A job pays for it when it becomes READY. If it may not start yet, it is SCHEDULED for the
    first time at which it may start, in the order of arrival. In any `per`, at most `most` plus `burst` jobs become READY. A job that
    becomes READY more than a second after its time pays again. So does a job that its worker received too late and hands back, and every
    further run of a job. After `Snoozed.closes`, no job passes the job's rates until the snooze is over. READY jobs that have passed them
    do so again, up to the first thousand.
  [gate_late] When a worker hands a job back with `limits`, the job passes its gates again, including those that its sender did not know.
    No counter is raised.
  [gate_paused] Jobs of a paused queue hold no slots. READY ones give their slots back and are SCHEDULED until the queue is resumed; then
    they pass their gates again. If such a job waits at a gate, its turn is skipped.
  [gate_taken_back] If a job stays READY for more than 5 s while jobs of other queues wait at its gates, upkeep takes its slots back. The
    first of the waiting jobs gets them, and the job waits again, behind the others with its priority.
  [gate_forgets] If a job ends while it waits at a gate, its turn is skipped.
  [gate_number] The number that the last sender declared is in force. If it is lower than before, surplus jobs keep their slots. If an
    operator sets a lower number, surplus READY jobs wait again, those that have been READY for the shortest time first.
  [gate_never_over] Whatever clients do at once, no more jobs of a gate are READY or RUNNING than its number allows, and all get their turn.
  [gate_acts] `run_now` skips a due time, but no gate. An ended job that is retried passes its gates again. Listings show jobs that wait at
    gates as SCHEDULED.

**register** adds a session.
  [register_repeat] Registering a living session again changes only its displayed facts: queues, jobs, deploy and trouble.
  [register_dead] A session that was reaped or has left stays dead. It gets SessionLost for at least `repeat_for`, and then is forgotten.

**turns**: jobs of a queue with a tenant (`fair`) are ordered so that the tenants take turns.
  [fair_turns] Among jobs with the same priority, the n-th jobs of all tenants are next to each other, however many jobs and senders each
    tenant has. A tenant that comes late or comes back begins at the place of the first READY job. Jobs that wait at a gate do the same.
  [fair_comes_back] A job that is handed back keeps its place, but never gets ahead of the first READY job. A retry takes its tenant's next
    place.
  [fair_times] `due_at`, `waited` and the age of the oldest ready job count from the time when a job became READY, whatever its place.
  [fair_forgets] Upkeep forgets tenants whose turns are over, so that they cost nothing.

**claim** leases up to `limit` ready jobs to a session.
  [claim_queues] Jobs come from `queues` in that order. If it is empty, they come from every queue, starting with a different queue on each
    request.
  [claim_fewer] Fewer than `limit` means that no more could be leased, or that the answer has no room for more. If a listener of these
    queues then waits, later jobs wake it, and so do jobs that are still there.
  [claim_eligible] A job that is paused, expired, held or not yet due is never leased.
  [claim_fence] Each lease has an epoch one higher than the job's last one. The pair of epoch and claim id has never existed before.
    After a store has lost its latest changes, either of the two may repeat, but never both together.
  [claim_waited] `waited` is the time since the job became due, by the store's clock.
  [claim_session] An unknown, reaped or departed session gets SessionLost, and nothing is leased.
  [claim_exclusive] A leased job is not leased to another session until it is settled, handed back or released by upkeep.
  [claim_memory] The same request number gets the same leases again, except those that the session no longer holds. Nothing new is leased.
  [claim_old_request] A request number below the last one gets nothing.

**beat** is a session's heartbeat: one write, however many leases it has.
  [beat_extends] A session that sends a heartbeat within its ttl is not reaped.
  [beat_dead] A reaped or departed session is not revived: it gets SessionLost.
  [beat_late] A session past its ttl lives on if it has not been reaped yet.
  [beat_lost] The answer lists as lost the claims in the beat that are not leased with exactly this fence.
  [beat_stopping] Each answer lists as stopping the claims whose jobs were asked to stop.
  [beat_ghosts] A leased job returns to its old place if the lease is older than `ghost_after`, the session does not name it, and the
    session has `seen` the request. No counter is raised.
  [beat_young] A younger lease, or one of a request not yet seen, is not affected.
  [beat_reports] The record shows the reported start and progress of runs.
  [beat_looks] The answer to a beat with `looks` has a `WorkHint`; others have none. Its `is_ready` is True if a claim could lease a job
    from a queue that isn't paused. Upkeep has nothing to move before `due_in`, except for later changes and jobs beyond `kept_per_queue`.
  [beat_leaving] A leaving session is dead at once. Then its remaining leases are handed back, each in a separate step. Upkeep hands back
    those that the call has not reached.
  [beat_died] A beat with `died_of` comes from another process, such as the supervisor, which knows of a death before the ttl has passed.
    The session is dead at once. Then each of its leases counts as a crash, as if it had been reaped, even during an outage. They are
    released like those of a leaving session. The job's error shows the cause, and the reason of a poison job shows the last cause.

**settle** ends a run, if the fence (RUNNING, epoch, claim id) matches.
  [settle_outcomes] The table of moves determines what follows each verdict: status, counters, times, error, result and reason.
  [settle_history] The error of a failed run shows the run's start, end, worker and outcome. So does the error of a crash, whose run began
    when the session reported it, or else when it claimed the job. No other run leaves an entry.
  [settle_stale] A settlement of an unknown job, or with a fence other than the job's current one, is STALE and changes nothing.
  [settle_repeat] Sending again the settlement that last took effect is OK and changes nothing.
  [settle_batch] Items of one batch are independent of each other. An item whose rows another program's open transaction holds (in stores
    that allow this) is HELD_UP: this item alone is not settled.
  [settle_progress] The record shows the progress in a settlement, whatever the verdict. Without progress, it still shows the last report.
  [settle_follow_ups] Follow-ups are added once, if and only if the settlement takes effect, even if the store is full. A follow-up whose
    key or id is taken is not added, and affects neither the settlement nor the other follow-ups.
  [settle_late] A lapsed session's settlement counts until its lease is released.
  [settle_resets] An outcome of a run resets the counts of crashes and of hand-backs.
  [settle_marked] A run that would wait again after it was asked to stop becomes CANCELLED.
  [hand_back_place] A job handed back without a wait keeps its place.
  [hand_back_backoff] No number of hand-backs fails a job. After a counted hand-back, the job waits as `hand_back_backoff` specifies for the
    number of hand-backs since the last outcome. `waiting_for` shows that number while the job waits.
  [settle_forgets_payload] A success without `arguments` keeps its result and no payload; a failure keeps its payload.
  [settle_keeps_arguments] A success with `arguments` keeps these as its payload, for as long as its result, unless the two exceed
    `MAX_PAYLOAD` bytes together.

**cancel** returns the status that the job had, or None for an unknown job.
  [cancel_waiting] A waiting job is CANCELLED at once.
  [cancel_running] A running job is marked and continues. Its session learns of the mark.
  [cancel_ended] An ended job stays as it is.

**read** returns records, and None for a job that is unknown or no longer kept.
  [read_kept] An ended job is returned for as long as it is kept, and not after.

**holders** returns, for each key, the id of the live job that has it, or None.
  [holders_waiting] If one job waits and another one runs, the id is that of the waiting one.
  [holders_running] A running job is returned even if it was asked to stop, because it is live until it ends.
  [holders_none] An ended job has no key, so it is never returned.

**upkeep** makes up to `limit` moves that have become necessary, and returns when to call it next. Any worker may call it, in any order
and any number of times. Calls may overlap: each move is made once.
  [upkeep_due] A due job becomes READY, and its due time determines its place.
  [upkeep_reaps] A session past its ttl is dead for good. Its leases are released as crashes. `next_in` is no later than the next lapse.
  [upkeep_bounded] No call makes more than `limit` moves. `next_in` is 0 if more are left. A session is dead before its first lease is
    released.
  [crash_backoff] The first crash causes no wait; later ones wait as `crash_backoff` specifies. A crash does not count as a failure.
  [crash_poison] More than `max_crashes` crashes in a row make the job FAILED as poison, whatever attempts are left or used.
  [poison_follow_up] A poison job with `on_failure` becomes READY in its old place instead of FAILED, and no longer expires. Its leases have
    the reason as `poison`: the worker settles it as `Discarded`, with the follow-up, without a run. That resets no counts. After further
    crashes it waits as `crash_backoff` specifies; beyond `max_poison_crashes` it becomes FAILED without the follow-up, and its reason says
    so. Cancellation and [key_gives_way] apply as to other jobs that wait again. It counts as poison only once it is FAILED.
  [crash_marked] A job that was asked to stop becomes CANCELLED after a crash, and does not run again.
  [outage] If a session lapses while no session at all has sent a heartbeat for two thirds of its ttl, the store was unavailable. The
    session gets one more ttl, once, from then or from when the silence is noticed: by `register`, by `beat`, or by an upkeep call that
    finds a lapsed session. If the session does not return, its leases count as handed back, not as crashed.
  [upkeep_expires] A waiting job past its expiry is CANCELLED, "expired".
  [upkeep_drops] An ended job is dropped when it need not be kept any longer. Its id is known for at least `repeat_for` after its end.
  [upkeep_caps] A queue keeps at most `kept_per_queue` failed jobs, and as many other ended ones. Upkeep drops the oldest, and counts them.

**upkeep** for ends without a final verdict. These are the ends of waiting jobs that were cancelled, replaced, purged or expired. They are
also the ends of running jobs whose worker was lost, has left, or does not know them, and of jobs that would wait again but are CANCELLED
([settle_marked], [key_gives_way]).
  [ends_heard] While a session with `wants_ends` lives, the store registers the ids of such jobs. Upkeep with `ends` removes and returns at
    most `MAX_ENDS` of them, oldest first. `next_in` is 0 if more are left. Each id goes to one caller, once.
  [ends_settled] The end of a job by a final verdict is not registered, because the worker that settled the job knows about it.
  [ends_unheard] While no such session lives, no ends are registered. Upkeep without `ends` removes none.
  [ends_bounded] About `max_ends` registered ends are kept. Older ones are dropped, at the latest by upkeep with `ends`, which returns their
    approximate number.
  [ends_told] The first registered end nudges listeners under `topics.DUE`. As long as there are registered ends, the `due_in` of a work
    hint for a session with `wants_ends` is 0.
  [ends_purged] While such a session lives, a purge leaves a waiting job for `PURGED_TTL` seconds as CANCELLED, so that it can be read.

**define** stores definitions of schedules, and returns True for each that was stored and False for each that was refused. If a session
is given, it declares the schedules, and its definitions apply only while it lives. Without a session, the schedules are put. A schedule
never changes from declared to put, or back.
  [schedule_put_repeat] Defining a schedule again with the digest in force changes nothing, except that a session becomes a declarer.
  [schedule_changed] A definition with a different digest replaces the one in force. If the next instant is in the future, it is discarded,
    and the schedule is offered at once so that it is computed again. If the next instant has passed, it is kept. The pause and the counts
    are kept too. The `since` of an offer without a next instant is the time when the schedule was created or resumed, or when its next
    instant was discarded. Offers, sleep and further changes do not move it. Without further instants, it's the time of the change.
  [schedule_taken] Putting a declared schedule is refused, and so is declaring one that was put. Nothing changes.
  [schedule_declared] If several sessions declare a schedule, the youngest one's definition is in force. `age` is a session's age in
    seconds. While no living session declares it, the schedule is asleep: it is not offered, but keeps its state. It is removed after
    `rules.keep_asleep`.
  [schedule_handover] After the session whose definition is in force has died or left, that of the next youngest session takes effect, as if
    it had been declared at that moment. This follows the release of the session's leases.
  [schedule_session] An unknown, reaped or departed session gets SessionLost, and nothing is stored.
  [schedule_due] When a schedule becomes the first one due, listeners are nudged under `topics.DUE`, as for jobs (see [listen_due]).

**upkeep** for schedules:
  [schedule_offer] Upkeep offers the schedules that are due, at most `MAX_OFFERS` per call and fewer if their definitions are large, each to
    one caller only. If that caller does not fire a schedule, it is offered again after `OFFER_TTL`. `next_in`, and the
    `due_in` of a work hint, are no later than the next offer.
  [schedule_paused] A paused schedule is neither offered nor fired. When it is resumed, its next instant is computed afresh, so instants
    that passed during the pause do not fire.

**fire** advances schedules, and returns one answer for each firing. Each firing is one atomic step. Those of one schedule take effect in
order.
  [schedule_fires] In one step, the envelopes are added as by `enqueue`, and the next instant and the time of the next offer are set. For a
    flow, the answer is about its last job.
  [schedule_cas] If the schedule is unknown or paused, or its digest or next instant is not the expected one, the answer is None, and that
    firing changes nothing. None is also the answer to a firing without envelopes.
  [schedule_advances] If the envelopes are refused, the schedule still advances. A refusal because of the key is counted as skipped; one
    because of a known id is not counted.
  [schedule_alone] With `is_alone`, a flow is Refused because of "key" if a job of the last flow that the schedule added has not ended. The
    answer names such a job.
  [schedule_extra] With `is_extra`, the job or flow is added although the schedule is paused or expects another instant. Its instants and
    its counts stay as they are.
  [schedule_full] If the store has no room for an envelope, fire raises StoreFull, and its schedule does not advance. Other schedules of the
    call may have advanced. If the call is sent again, [schedule_cas] applies to these.

**listen** gives hints, never promises. A listener is one event loop of a process with one broker.
  [listen_ready] When a job becomes READY, listeners are nudged for its queue, and under `topics.ANY_QUEUE`. For their number, see below.
  [listen_session] When a run is asked to stop, the listeners for its session are nudged.
  [listen_ended] When a job ends, the listeners for the job are nudged.
  [listen_due] When a newly SCHEDULED job is due before all others, `MAX_NUDGED_WHEN_DUE` listeners are nudged under `topics.DUE`.
  [listen_sticky] The second of two waits does not miss a nudge between them.
  [listen_lasts] Code in the listener's loop may cancel every task there. Nudges still arrive afterwards.

**nudges** wake as many workers as there is work for. A listener waits for jobs after a claim that got fewer than its limit. A nudge is a
hint: it may reach a listener that is gone, hangs, or has no room. Then another listener finds the job within about a second, and the
work hint of a beat shows that jobs are ready.
  [nudge_few] If n jobs become READY, n of the listeners that are waiting for jobs of their queue are nudged.
  [nudge_next] If a claim gets its limit and leaves READY jobs, another listener is nudged.
  [nudge_full] A listener whose claim got its limit does not wait.
  [nudge_paused] No listener is nudged for jobs of a paused queue. When it is resumed, its jobs count as having just become READY.
  [ended_told] The end of a job is reported only to the listeners that are waiting for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

import msgspec

from taskflow.broker.admin import Admin
from taskflow.broker.wakeups import Waiter
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.record import Record, Status
from taskflow.model.schedule import Definition, Firing, Offer
from taskflow.model.session import Beat, BeatAnswer, Session
from taskflow.model.verdict import Settled, Settlement

PASS_ON_TIMEOUT: Final = 0.25
"""Seconds that a job stays READY before upkeep on PostgreSQL nudges another listener for it."""

LISTENER_TTL: Final = 150.0
"""Seconds after which a listener that has not started to wait again is presumed gone. An idle worker claims at least once a minute."""

MAX_NUDGED_WHEN_DUE: Final = 2
"""The maximum number of listeners nudged when a newly scheduled job is due before all others. Each calls upkeep when the job is due."""

MAX_ENDS: Final = 100
"""The maximum number of ends without a settlement that one call of upkeep returns."""

PURGED_TTL: Final = 60.0
"""Seconds for which workers that handle the end of a purged job can still read the job."""


class Added(msgspec.Struct, frozen=True):
    """The job was added. `replaced` is the id of the waiting job that it replaced."""

    id: bytes
    replaced: bytes | None = None


class Refused(msgspec.Struct, frozen=True):
    """The job with the id `id` was not added. `because` is "key" if another job has or represents its key, "id" if the same job was sent
    before, and "clash" if a different job has its id. With "key", `existing` is the id of that other job; otherwise it equals `id`."""

    id: bytes
    existing: bytes
    because: Literal["id", "key", "clash"]

    @classmethod
    def as_known(cls, envelope: Envelope, known: Record | None) -> Refused:
        """Return the refusal of an envelope whose id is known. `known` is the job's record, or None if it has been dropped."""
        has_changed = envelope.on_conflict is OnConflict.DEBOUNCE
        is_resent = known is None or (
            (known.job, known.queue, known.key_text) == (envelope.job, envelope.queue, envelope.key_text)
            and (has_changed or known.status is Status.SUCCEEDED or known.payload in (None, envelope.payload))
        )
        return cls(envelope.id, envelope.id, "id" if is_resent else "clash")


class Notes(msgspec.Struct, frozen=True):
    """Some of the results that a job in a flow receives. `notes` pairs each input's number with bytes for `flow.read_note`. `next` is the
    number at which further results start, or None if there are none."""

    notes: tuple[tuple[int, bytes], ...] = ()
    next: int | None = None


class UpkeepResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one upkeep call: the number of moves of each kind (`reaped` counts sessions, the others jobs). The next call is due in
    `next_in` seconds.

    `offers`        the schedules that the caller is to fire
    `ended`         the ids of jobs that have ended without a settlement, for a caller that handles them
    `ends_dropped`  about how many such ids were dropped since the last call with `ends`, because there were too many
    """

    readied: int = 0
    reaped: int = 0
    released: int = 0
    expired: int = 0
    dropped: int = 0
    next_in: float = 1.0
    offers: tuple[Offer, ...] = ()
    ended: tuple[bytes, ...] = ()
    ends_dropped: int = 0


class Broker(Protocol):
    """A store of jobs, as a client uses it. The module's docstring is the contract."""

    @property
    def admin(self) -> Admin:
        """The operations behind the command line and the dashboard."""
        ...

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]: ...

    async def register(self, session: Session) -> tuple[str, ...]:
        """Add a session, and return the names of the paused jobs."""
        ...

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]: ...

    async def beat(self, beat: Beat) -> BeatAnswer: ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]: ...

    async def cancel(self, ids: Sequence[bytes]) -> list[Status | None]: ...

    async def read(self, ids: Sequence[bytes]) -> list[Record | None]: ...

    async def notes(self, job: bytes, first: int = 0) -> Notes:
        """Return results that a job in a flow has received, in the order of its inputs, starting at input number `first`."""
        ...

    async def holders(self, keys: Sequence[bytes]) -> list[bytes | None]: ...

    async def upkeep(self, limit: int, *, ends: bool = False) -> UpkeepResult: ...

    async def define(self, definitions: Sequence[Definition], session: bytes | None = None, age: float = 0.0) -> list[bool]: ...

    async def fire(self, firings: Sequence[Firing]) -> list[Added | Refused | None]: ...

    def listen(self, topics: Sequence[str]) -> Waiter: ...

    def sibling(self) -> Broker:
        """Return another broker for the same store, with separate connections, so that another thread can use it."""
        ...

    async def close(self) -> None:
        """Close connections, threads and files. A second call does nothing. A sibling is closed separately."""
        ...
