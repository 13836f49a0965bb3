"""The seam: the interface between the engine, which makes the decisions, and a store, which holds the records.

A store knows headers, revisions and indexes, but none of the rules for jobs. Each name in brackets is a test in the seam's suite, and a new
store must pass all of them.

Every job header that the engine writes has these properties. A store may refuse others, because other programs may write records too:
  - The id has 16 bytes. The queue and the job name are not empty. The priority is from -100 to 100. No time except `started_at` is before
    1970.
  - A RUNNING job has `session` (16 bytes), `claim` (12 bytes) and `claimed_steady`. No other job has a session or a claim.
  - Every job that has ended has `ended_at` and `fade_at`, and no other job does. A FAILED job has a `cause` of at least 8 bytes.

  [snapshot]   A record returned by a query or a claim does not change when the stored record does.
  [step]       A step takes effect as a whole or not at all. The steps of one `apply` are independent: each expects the records as they
               were before the call. The store answers the query `then` after all steps.
  [expect]     A step is Stale if a record that it expects has a different revision, exists although ABSENT was expected, or is missing.
  [resent]     If the reply to a call is lost, the client may resend the same bytes; doing so changes nothing. A repeated step is Stale,
               because each step puts or drops at least one record. `add`, `succeed` and a claim give the same answer again.
  [fresh_rev]  Each put, claim, `succeed`, `promote` and `fade` gives a record a revision that its ref never had before, even if the record
               was dropped and recreated.
  [once]       `apply` raises ValueError if two of its puts and drops name the same record. Such a call is a bug, not a conflict.
  [added]      Additions are applied after the puts of their step. They add up within a step and across the steps of a call, and do not
               change the revision.
  [owned]      A put leaves fields that have an owner unchanged, unless the record is new or the put `restarts` the job. No put writes the
               fields that the store owns.
  [released]   An addition to `awaits` works in every status, and does not change the status. Once a HELD job's `awaits` is 0 and BEHIND
               is not set, the job is in the index `due`, and `promote` makes it READY if its time has come.
  [stamped]    The store sets `created_at` and `seq` of a new record; `seq` is higher than in all earlier records. A value `After(n)`
               becomes the store's time at the `apply`, plus n.
  [locked]     If another program's open transaction has locked a record, only the steps that name it are Locked.
  [full]       A step is Full if an addition, together with earlier ones of the call, would exceed its bound. If the call `grows`, a step
               is also Full if the store has no room for its new jobs.
  [indexed]    A record is in each index whose condition its header meets, and its entry changes at the same instant as the record. Within
               a position, numbers sort by value, names by code point, and bytes bytewise. A position precedes all longer ones that begin
               with it.
  [counted]    The groups of an index are exact for every reader that sees the records. Empty groups are not returned. If the index is not
               `counted`, a group has a first position only. A store may count many groups in portions.
  [unread]     A record is loaded, put and dropped whatever bytes it contains. An unreadable header sets `damage` on its own record only.
  [content]    A query returns payloads and results only if it asks for them. A put keeps, replaces or removes each part.

  [claim_order]   A claim goes through the queues in the order given. In each, it takes the highest priority first, then the earliest due
                  time, then the lowest `seq`.
  [claim_turns]   If no queues are given, a claim goes through all queues with READY jobs, starting at a different one with each request.
  [claim_skips]   A claim skips jobs that have expired, and queues that are paused. A queue is paused if it has a record.
  [claim_repeat]  If the session's last request is repeated, it gets the same leases, except those no longer held. Older requests get none.
  [claim_dead]    A claim by an unknown or dead session returns None.
  [claim_writes]  A lease sets status, `epoch` (plus 1), `session`, `claim`, `claimed_at`, `claimed_steady` and `worker`, clears
                  `started_at`, and is counted. The request's number is stored in the session's record, whose revision doesn't change.

  [hot_add]      `add` adds the jobs with new ids as puts would, or none of them. It counts each, and returns False for each known id.
  [hot_succeed]  `succeed` writes `settled`, `ended_at`, `started_at`, `fade_at` and the result, clears the lease, and counts each end. It
                 returns True again for a repeated call, False for a different fence, and None for a job with ties (see `Flag.TIES`).
  [hot_key]      The key of a job isn't a tie if its run names it, and if the key's record has this job as `holder` and no `next`. `succeed`
                 drops that record in the same step.
  [hot_tie]      Being awaited isn't a tie either, if exactly one job awaits this one and the run names it. `succeed` subtracts one from
                 that job's `awaits` and stores the result as the run's note, in the same step. For a run whose note already exists, it
                 returns None. `succeed` also returns which of the named jobs no longer await anything, or don't exist. Instead of
                 returning a job, it may make it READY if `promote` would do so.
  [hot_limits]   `hand_over` ends runs of jobs without ties except limits, as `succeed` does. For each run of a gate, the first job in
                 `gated` becomes READY, if the gate has room, and is counted as `due`. No run of a gate ends if one of these jobs needs more
                 than that: if it isn't SCHEDULED, has a state, FAIR or MANY_GATES, or is in a paused queue. A gate's last slot drops it.
  [hot_promote]  `promote` makes jobs in `due` READY if their time has come, the earliest first. It sets a HELD job's `due_at` to now.
  [hot_fade]     `fade` buries jobs that need not be kept: it removes all but their ids and headers, and forgets those later. It leaves jobs
                 with ties alone, and returns them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Generator, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from taskflow.broker.engine.records import BURIED, HELD, Position

T = TypeVar("T")

MAX_FORGOTTEN: Final = 1_000
"""How many ids one `fade` may forget, in addition to the jobs that its limit allows. After a burst, very many ids may be due at once."""


class Ref(NamedTuple):
    """Identifies a record by its kind (see `records.Kind`) and its id."""

    kind: int
    id: bytes


Rev = bytes
"""A revision: an opaque token of 8 bytes. Callers compare revisions, and do nothing else with them."""

ABSENT: Final[Rev] = b""
"""The revision of a record that does not exist."""


# --- records and steps --------------------------------------------------------------------------------------------


class Record(NamedTuple):
    """A stored record.

    `sent`     the part that the sender of a job writes; None if there is none
    `state`    the part that the engine's decisions change; None if there is none
    `content`  the payload of a job that has not succeeded, or the result of one that has; None unless it was asked for
    `damage`   what couldn't be read, one line for each part: its name, a tab, and what is known about it. The header may then be empty
    """

    ref: Ref
    rev: Rev
    header: dict[str, Any]
    sent: bytes | None = None
    state: bytes | None = None
    content: bytes | None = None
    damage: str | None = None


class Keep(Enum):
    """Marks a part of a record that a put leaves unchanged."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP


class After(int):
    """A time given as the number of microseconds after the store's time at the moment of an `apply`."""

    __slots__ = ()


NOW: Final = After(0)


class Put(NamedTuple):
    """Writes a record.

    `header`    the values of the fields; a missing field gets its default in a new record, and keeps its value in an existing one
    `restarts`  True if an operator retries the job: fields that belong to additions and claims are written too
    `entries`   for indexes with `entries`, the distinct values that replace the current ones. Other indexes keep theirs
    """

    ref: Ref
    header: Mapping[str, Any]
    state: bytes | Keep | None = KEEP
    sent: bytes | Keep | None = KEEP
    content: bytes | Keep | None = KEEP
    restarts: bool = False
    entries: Mapping[str, tuple[str | bytes, ...]] | None = None


class Addition(NamedTuple):
    """Adds `n` to a field owned by additions. If the result would exceed `most`, the step is Full.

    If the record doesn't exist, the addition does nothing. A step never puts a record to which it makes a bounded addition.
    """

    ref: Ref
    field: str
    n: int
    most: int | None = None


class Step(NamedTuple):
    """A change that takes effect as a whole.

    `expect`  the revisions of the records that it puts or drops, and of all others that the decision read
    `totals`  the numbers to add to the counts of events, by queue and event
    `wakes`   the topics to announce: those of sessions, and `topics.DUE`. The store itself announces READY jobs and the ends of jobs
    """

    expect: Mapping[Ref, Rev]
    puts: tuple[Put, ...] = ()
    drops: tuple[Ref, ...] = ()
    adds: tuple[Addition, ...] = ()
    totals: Mapping[tuple[str, str], int] = {}
    wakes: tuple[str, ...] = ()


class Applied(NamedTuple):
    """The step took effect."""


class Stale(NamedTuple):
    """A record has changed since it was read. `refs` is empty if the store does not know which record."""

    refs: tuple[Ref, ...] = ()


class Locked(NamedTuple):
    """Another program's open transaction has locked these records."""

    refs: tuple[Ref, ...]


class Full(NamedTuple):
    """Additions to `refs` would exceed a bound. If the store has no room, `refs` is empty and `says` is the message for the caller."""

    refs: tuple[Ref, ...] = ()
    says: str = ""


Answer = Applied | Stale | Locked | Full


# --- reading ------------------------------------------------------------------------------------------------------


class Scan(NamedTuple):
    """Selects at most `limit` entries of an index.

    `of`            the name of the index
    `prefix`        the first fields of the entries' positions; in an index with `entries`, positions begin with the entry's value
    `after`         the position after which the entries begin, in the direction of the scan; None to begin at the first
    `until`         the position at which the entries end, inclusive; None for no end
    `backwards`     True to scan in descending order of positions
    `with_records`  False to get positions and refs only
    """

    of: str
    limit: int
    prefix: Position = ()
    after: Position | None = None
    until: Position | None = None
    backwards: bool = False
    with_records: bool = True


class Entry(NamedTuple):
    """An entry of an index. `record` is None if the scan did not ask for it."""

    position: Position
    ref: Ref
    record: Record | None


class Group(NamedTuple):
    """The entries of an index that share a prefix: `size` entries, from position `first` to `last` (None if entries are only counted).

    If the index is not `counted`, `size` is 0 and `last` is None.
    """

    prefix: Position
    size: int
    first: Position | None
    last: Position | None


class Query(NamedTuple):
    """Everything that one decision reads, in one round trip. A store that supports snapshots answers from a single one.

    `groups`  index names, each with a prefix of the groups to return
    `fields`  the fields that the caller needs in the headers of jobs, including those of positions; if empty, all. A store may return more
    """

    refs: tuple[Ref, ...] = ()
    scans: tuple[Scan, ...] = ()
    groups: tuple[tuple[str, Position], ...] = ()
    with_content: bool = False
    with_totals: bool = False
    fields: tuple[str, ...] = ()


class Snapshot(NamedTuple):
    """The answer to a query.

    `now`     the store's wall clock, in microseconds since 1970
    `steady`  the store's clock for leases, in microseconds; `boot` identifies the boot from which it counts
    """

    now: int
    steady: int
    boot: bytes
    records: dict[Ref, Record | None]
    scans: tuple[list[Entry], ...] = ()
    groups: tuple[list[Group], ...] = ()
    totals: dict[tuple[str, str], int] = {}


# --- what an engine function yields -------------------------------------------------------------------------------


class Apply(NamedTuple):
    """Applies steps.

    `grows`  True if the steps add jobs. A step whose jobs the store has no room for is then answered with `Full`
    `then`   a query to answer after the steps, in the same round trip
    """

    steps: Sequence[Step]
    grows: bool = False
    then: Query | None = None


class Add(NamedTuple):
    jobs: Sequence[Put]


class Succeed(NamedTuple):
    runs: Sequence[Run]


class HandOver(NamedTuple):
    """`gate_ids` contains the gate of each run."""

    runs: Sequence[Run]
    gate_ids: Sequence[bytes]


class Promote(NamedTuple):
    limit: int


class Fade(NamedTuple):
    limit: int
    max_kept: int
    repeat_for: int


class Run(NamedTuple):
    """A run that succeeded. `ran_for` and `keep_for` are in microseconds. `key` is the id of the record of the job's key.

    `awaited_by` is the only job that awaits this one. `note` is the id under which that job gets the result, or empty if it takes none.
    """

    id: bytes
    epoch: int
    session: bytes
    claim: bytes
    result: bytes
    ran_for: int
    keep_for: int
    key: bytes | None = None
    awaited_by: bytes | None = None
    note: bytes = b""


class Ended(NamedTuple):
    """The answer to `succeed`.

    `answers`   for each run: True if it was ended now or before, False if its fence doesn't match, None if its job has ties
    `released`  the jobs named as `awaited_by` that no longer await anything and aren't READY, or that don't exist
    """

    answers: list[bool | None]
    released: list[bytes] = []


class Claimed(NamedTuple):
    """The jobs that a session has leased, with their payloads.

    The headers may have only what a lease needs: `flags`, `priority`, `queue`, `job`, `created_at`, `due_at`, `expires_at`, `epoch`,
    `session` and `claim`. If a job has `since`, the header contains it too, or has its value as `due_at`.
    """

    records: list[Record]
    now: int


class Faded(NamedTuple):
    """The answer to `fade`.

    `buried`    how many jobs it buried
    `has_more`  True if it stopped at the limit
    `left`      jobs with ties that are due for burial, which the engine buries; each maps to True if its queue has too many jobs
    """

    buried: int
    has_more: bool
    left: dict[Ref, bool]


class HandedOver(NamedTuple):
    """The indexes of the runs that have ended, and the gates that still have room although jobs wait there."""

    ended: list[int]
    opened: list[bytes]


Effect = Query | Apply | Add | Succeed | HandOver | Promote | Fade
"""What an operation yields. Each of these is a call of the `Store` method with the same name, such as `query` or `hand_over`."""

Operation = Generator[Effect, Any, T]
"""A generator of the engine. It yields effects (calls of store methods), receives their answers, and returns T. Because it contains no
`await`, it can run in a lock, in a transaction, or in a coroutine."""


class Store(Protocol):
    """A store of records. The methods of a store on a server are coroutines.

    The broker's `claim_records` calls `claim(session, request, queues, limit)`, with further arguments if the store's wake-ups need them.
    It leases READY jobs that have not expired, from queues that are not paused, and returns `Claimed`, or None if the session is unknown or
    dead. Without queues, it goes through all queues with READY jobs, starting at a different one each time.
    """

    def query(self, query: Query) -> Snapshot | Awaitable[Snapshot]: ...

    def apply(self, apply: Apply) -> _Applied | Awaitable[_Applied]: ...

    def add(self, jobs: Sequence[Put]) -> list[bool] | str | Awaitable[list[bool] | str]:
        """Add READY jobs without ties, no two with the same id. For each job, return True, or False if its id is known.

        If the store has no room, add none, and return a message.
        """
        ...

    def succeed(self, runs: Sequence[Run]) -> Ended | Awaitable[Ended]:
        """End runs as SUCCEEDED, except those that are over or whose jobs have ties: see [hot_succeed]."""
        ...

    def hand_over(self, runs: Sequence[Run], gate_ids: Sequence[bytes]) -> HandedOver | Awaitable[HandedOver]:
        """End runs as SUCCEEDED, and pass on their slots, except where the general decision is needed: see [hot_limits]."""
        ...

    def promote(self, limit: int) -> tuple[int, int | None] | Awaitable[tuple[int, int | None]]:
        """Make due jobs READY. Return their number, and the time when the next job is due, or None."""
        ...

    def fade(self, limit: int, max_kept: int, repeat_for: int) -> Faded | Awaitable[Faded]:
        """Bury ended jobs that have no ties and need not be kept, and forget buried ones `repeat_for` microseconds after their end.

        Each queue keeps at most `max_kept` FAILED jobs, and as many other ended ones. The oldest are buried first, and counted as
        `wording.DROPPED_OVER_CAP`. Any job is buried once its `fade_at` has passed.
        """
        ...


_Applied = tuple[list[Answer], Snapshot | None]


def awaits_nothing(header: Mapping[str, Any]) -> bool:
    """Return True if `succeed` should return a job named as `awaited_by`, because the job can be released or was buried."""
    return bool(header["status"] == BURIED or (header["status"] == HELD and header["awaits"] <= 0))


def dispatch(store: Store, effect: Effect) -> Any:
    """Call the store method for an effect that an operation yielded. Return its answer, or a coroutine if the store is on a server."""
    match effect:
        case Query():
            return store.query(effect)
        case Apply():
            return store.apply(effect)
        case Add(jobs):
            return store.add(jobs)
        case Succeed(runs):
            return store.succeed(runs)
        case HandOver(runs, gate_ids):
            return store.hand_over(runs, gate_ids)
        case Promote(limit):
            return store.promote(limit)
        case Fade(limit, max_kept, repeat_for):
            return store.fade(limit, max_kept, repeat_for)


def refuse_repeated(steps: Iterable[Step]) -> None:
    """Raise ValueError if two puts or drops name the same record."""
    written = Counter(ref for step in steps for ref in (*(put.ref for put in step.puts), *step.drops))
    for ref, times in written.items():
        if times > 1:
            raise ValueError(f"{ref!r} is put or dropped {times} times in one apply: merge the steps that write it")
