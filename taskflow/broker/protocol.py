"""The broker's contract. Each clause (a name in brackets) is a test of that name in the conformance suite, run on every broker.

Every verb is atomic: it takes effect as a whole or not at all. Every verb may be sent again after `BrokerUnavailable`,
up to 60 s later, without harm. Time is the store's: clients send durations. All methods may be called from any
running event loop of the process; several processes may share a store (memory excepted).

A store may hold anything: other programs write to it, disks fail, releases differ.
  [unreadable_row] a value that no broker could have stored spoils its own job or session, and nothing else. Every verb goes on past it. Of
    a job it is named in `Lease.unreadable` and `Record.unreadable`, with its first bytes; such a job ends FAILED. A session with such a
    value lives on with a default in its place, or is reaped. (Memory holds objects that nobody else can write.)

**enqueue** adds envelopes in order and answers one by one.
  [enqueue_adds] a new id is Added: READY when it is due, else SCHEDULED until its time, HELD while it awaits others.
  [enqueue_repeat] an id that is known, ended or not, adds nothing: Refused with that id, because of "id".
  [enqueue_order] ready jobs are claimed by priority, higher first, then by the time they became ready, then in order of arrival.
  [enqueue_past] an instant in the past means now.
  [key_keeps] while a live job has the key, another is Refused with the standing id, because of "key"; the waiting holder is named
    before the running one.
  [key_cancelled] a running holder that was asked to stop refuses no other: one that no waiting holder refuses is Added, and waits as
    [key_waits_behind] says. Only an operator's retry of an ended job finds the key taken still.
  [key_neighbours] a refused item leaves the others of its batch alone.
  [key_released] an ended job holds no key, however it ended.
  [key_survives_retry] a job that waits for its retry still holds its key.
  [key_replaces] on REPLACE the waiting holder becomes CANCELLED, "replaced by ID", and the new job is Added under its own id.
  [key_waits_behind] on REPLACE while the holder runs, the new job is HELD until that run's job has left RUNNING.
  [key_gives_way] a run that would wait again while a replacement waits behind it becomes CANCELLED, "replaced by ID".
  [enqueue_full] a store without room raises StoreFull and adds nothing of the batch; all other verbs go on.
  [joins] a HELD job is released when as many jobs that name it in `joins` have ended, however they ended, as it awaits.

**register** makes a session known.
  [register_repeat] registering a living session again changes nothing.
  [register_dead] a session that was reaped, or has left, stays dead: SessionLost, for `repeat_for` at least, and then is forgotten.

**claim** leases up to `limit` ready jobs to a session.
  [claim_queues] from `queues` in that order, or, when it is empty, from every queue, starting from another one at each request.
  [claim_fewer] fewer than `limit` are all that could be leased, or all that one answer holds: a listener of their queues that waits next is
    woken by what comes after, and by what is there still.
  [claim_eligible] never a job that is paused, expired, held, or not yet due.
  [claim_fence] each lease has an epoch one above the job's last, and with its claim id a pair that never existed before:
    either of them alone may come again after a store has lost its tail.
  [claim_session] an unknown, reaped or departed session gets SessionLost, and nothing is leased.
  [claim_exclusive] a leased job is not leased to another until it was settled, handed back or released by upkeep.
  [claim_memory] the same request number again gets the same leases, less those that are no longer its own; nothing new is leased.
  [claim_old_request] a request number below the last one gets nothing.

**beat** is a session's sign of life, one write whatever it holds.
  [beat_extends] a session that beats within its ttl is not reaped.
  [beat_dead] a reaped or departed session is not revived: SessionLost.
  [beat_late] a session past its ttl that nobody has reaped yet lives on.
  [beat_lost] claims named that are not leased under that very fence are answered as lost.
  [beat_stopping] claims whose jobs were asked to stop are answered as stopping, each time.
  [beat_ghosts] a lease older than `ghost_after` that the session does not name, of a request that it has `seen`, goes back to its old
    place; no counter is raised.
  [beat_young] a lease younger than that, or of a request not yet seen, is left alone.
  [beat_reports] start and progress of runs that it reports are in the record.
  [beat_looks] a beat that `looks` is answered with an outlook: it `is_ready` while a claim could lease anything from a queue that is not
    paused, and upkeep has nothing to move before `due_in`, but for what comes meanwhile and for what is beyond `kept_per_queue`. Other
    beats get none.
  [beat_leaving] a leaving session's remaining leases are handed back at once, and it is dead.
  [beat_died] a session that is said to have `died_of` something is dead, and each of its leases a crash at once, as after its reaping,
    whatever outage there was; the cause is in the job's error, and the last one in the reason of poison. Another process than the
    session's own says so: its supervisor knows long before the ttl has passed.

**settle** ends or turns a run, if the fence (RUNNING, epoch, claim id) holds.
  [settle_outcomes] each verdict leads where the table of moves says, with its counters, times, error, result and reason.
  [settle_stale] another fence than the job's present one changes nothing: STALE. So does an unknown job.
  [settle_repeat] the settlement that took effect last, sent again, is OK and changes nothing.
  [settle_batch] items of one batch are independent of each other. One that a stranger's open transaction holds up, where the store lets
                 strangers have some, is HELD_UP: it alone has not been settled.
  [settle_progress] the progress that a settlement carries is in the record, whatever the verdict; without one the last report stays.
  [settle_follow_ups] follow-ups are added if and only if the settlement takes effect, once.
  [settle_late] a lapsed session's settlement counts until its lease is released.
  [settle_resets] an outcome of a run resets the counts of crashes and of hand-backs.
  [settle_marked] a run that would wait again after its cancellation was asked for becomes CANCELLED.
  [hand_back_place] a job handed back without a wait stands where it stood.
  [hand_back_backoff] no number of hand-backs fails a job. A counted one waits as `hand_back_backoff` says, by the number of them without
    an outcome between; `waiting_for` gives that number while it waits.
  [settle_forgets_payload] a success keeps its result and no payload; a failure keeps its payload.

**cancel** answers the status that it found, None for an unknown job.
  [cancel_waiting] what waits is CANCELLED at once.
  [cancel_running] what runs is marked, goes on, and its session hears of it.
  [cancel_ended] what has ended stays as it is.

**read** gives records, None for what is unknown or no longer kept.
  [read_kept] an ended job is there for as long as it is kept, and not after.

**upkeep** does up to `limit` moves of what time has brought and says when to come again; any worker, any order, any number of times.
  [upkeep_due] what is due becomes READY with its due time as its place.
  [upkeep_reaps] a session past its ttl is dead for good, and its leases are released, each a crash; `next_in` comes no later than that.
  [upkeep_bounded] no call makes more than `limit` moves; `next_in` is 0 when there is more; a session is dead before its first lease is
    released.
  [crash_backoff] no wait after the first crash, then as `crash_backoff` says; a crash is no failure.
  [crash_poison] more than `max_crashes` crashes in a row, whatever attempts are left or used: FAILED as poison.
  [crash_marked] a job that was asked to stop does not run again after a crash: CANCELLED.
  [outage] when no session has beaten for a session's whole ttl, that was the store's outage: it gets one more ttl, and its leases, if
    it does not come back, count as handed back, not as crashed.
  [upkeep_expires] a waiting job past its expiry is CANCELLED, "expired".
  [upkeep_drops] what outlived its keep is dropped, its id only after `repeat_for`.
  [upkeep_caps] beyond `kept_per_queue` ended, and apart from them failed, jobs of a queue the oldest are dropped, and counted.

**listen** gives hints, never promises. A listener is one event loop of a process with one broker.
  [listen_ready] a nudge for the queue when a job becomes READY, for every queue under `topics.ANY_QUEUE`: see below, to how many.
  [listen_session] a nudge for the session when one of its runs is asked to stop.
  [listen_ended] a nudge for the job when it ends.
  [listen_due] a nudge under `topics.DUE` when a job is SCHEDULED that is due before all others, to `UPKEEPERS` listeners.
  [listen_sticky] a nudge between two waits is not missed by the second.

**nudges** wake as many workers as there is work for. A listener waits for jobs after a claim that got fewer than its limit.
  [nudge_few] n jobs that become READY nudge n of the listeners that wait for jobs of their queue;
  [nudge_all_when_many] all of them, if fewer wait.
  [nudge_next] a claim that gets its limit and leaves READY jobs nudges another listener.
  [nudge_full] a listener whose claim got its limit does not wait.
  [nudge_paused] jobs of a paused queue nudge nobody. When it is resumed, they nudge as if they became READY then.
  [nudge_dead] a listener that is closed, or whose process is seen to be gone, is passed over.
  [nudge_hung] a nudge that no claim has followed within `PASSED_ON_AFTER` goes to another listener with the next verb that makes jobs
    READY, with upkeep, or with a beat that `looks`.
  [nudge_unheard] a nudge for which nobody waits in the listener's process any more goes to another.
  [ended_told] the end of a job is told only to the listeners that wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

import msgspec

from taskflow.broker.console import Console
from taskflow.broker.nudges import Nudges
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.record import Record, Status
from taskflow.model.session import Beat, BeatAnswer, Session
from taskflow.model.verdict import Settled, Settlement

PASSED_ON_AFTER: Final = 0.25
"""Seconds after which a nudge that no claim has followed is passed on to another listener."""

GONE_AFTER: Final = 150.0
"""Seconds after which a listener that has not come to wait again is taken for gone. An idle worker claims at least once a minute."""

UPKEEPERS: Final = 2
"""The most listeners that are nudged when a job is scheduled before all others: each calls upkeep when it is due."""


class Added(msgspec.Struct, frozen=True):
    """The job was added. `replaced` is the id of the waiting job that it replaced."""

    id: bytes
    replaced: bytes | None = None


class Refused(msgspec.Struct, frozen=True):
    """The job was not added. `standing` is the id of the job in its way: its own if it had been sent before."""

    id: bytes
    standing: bytes
    because: Literal["id", "key"]


class Upkept(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a maintenance call: the number of jobs it moved, by kind. The next call is due in `next_in` seconds."""

    readied: int = 0
    reaped: int = 0
    released: int = 0
    expired: int = 0
    dropped: int = 0
    next_in: float = 1.0


class Broker(Protocol):
    """Where jobs wait. The module's docstring is the contract."""

    @property
    def console(self) -> Console:
        """The operations of the command line."""
        ...

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]: ...

    async def register(self, session: Session) -> None: ...

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]: ...

    async def beat(self, beat: Beat) -> BeatAnswer: ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]: ...

    async def cancel(self, ids: Sequence[bytes]) -> list[Status | None]: ...

    async def read(self, ids: Sequence[bytes]) -> list[Record | None]: ...

    async def upkeep(self, limit: int) -> Upkept: ...

    def listen(self, topics: Sequence[str]) -> Nudges: ...

    def sibling(self) -> Broker:
        """Return another broker of the same store, with its own connections, for another thread."""
        ...

    async def close(self) -> None:
        """Close connections, threads and files. A second call does nothing; a sibling is closed separately."""
        ...
