"""The seam between the engine, which decides, and a store, which keeps records.

A store knows headers, revisions and indexes. It knows no rule of a job. Each name in brackets is a test of the seam's suite; a new store
must pass all of them.

The engine keeps the headers of jobs possible, and a store may refuse others, because other programs may be able to write its records:
  - The id has 16 bytes. The queue and the name of the job are not empty. The priority is from -100 to 100. No time but `started_at` is
    before 1970.
  - A RUNNING job has `session` (16 bytes), `claim` (12 bytes) and `claimed_steady`. No other job has a session or a claim.
  - Jobs that have ended, and no others, have `ended_at` and `fade_at`. A FAILED one has a `cause` of at least 8 bytes.

  [snapshot]   What a query or a claim has returned does not change when the record does.
  [step]       A step takes effect as a whole or not at all. The steps of one `apply` are independent: each expects the records as they
               were before the call. The query `then` is answered after all of them.
  [expect]     A step is Stale if a record that it expects has another revision, exists although ABSENT was expected, or is missing.
  [resent]     If the reply to a call was lost, the same bytes may be sent again, and change nothing then. A step is Stale: it puts or drops
               a record at least. `add`, `succeed` and a claim answer as they did.
  [fresh_rev]  Each put, claim, `succeed`, `promote` and `fade` gives a record a revision that this ref never had before. This also holds
               after the record was dropped and made again.
  [once]       `apply` raises ValueError if two of its puts and drops name the same record. Such a call is a bug, not a conflict.
  [added]      Additions follow the puts of their step. They are summed, in a step and across the steps of a call, and do not change the
               revision.
  [owned]      A put leaves the fields with an owner as they are stored, unless the record is new or `restarts`. No put writes the fields
               of the store.
  [released]   An addition to `awaits` counts in every status, and does not change it. Once `awaits` of a HELD job is 0 and BEHIND is not
               set, the job is in the index `due`, and `promote` makes it READY if its time has come.
  [stamped]    The store gives a new record `seq`, which is higher than that of each record made before it, and `created_at`. A value
               `After(n)` becomes the store's time, plus n, when it is applied.
  [locked]     If another program's open transaction has locked a record, only the steps that name it are Locked.
  [full]       A step is Full if an addition, with those before it in the call, would pass its bound. If the call `grows`, a step is also
               Full if the store has no room for its new jobs.
  [indexed]    A record is in each index whose condition its header meets, at that position, from the same instant as the record itself.
               Numbers, names (by code point) and bytes rise. A shorter position is before all positions that begin with it.
  [counted]    The groups of an index are exact for every reader that sees the records. Empty groups are not returned. If the index is not
               `counted`, a group has its first position only.
  [unread]     A record of any bytes is loaded, put and dropped like others. A header that cannot be read is reported as damage, alone.
  [content]    A query returns payloads and results only if it asks for them. A put keeps, replaces or removes each part.

  [claim_order]   A claim takes the queues in the order given. In each, it takes the highest priority first, then the earliest due time,
                  then the lowest `seq`.
  [claim_turns]   Without queues, it takes every queue with READY jobs, beginning at a different one with each request.
  [claim_skips]   It passes over jobs that have expired, and over queues that are paused: those with a record.
  [claim_repeat]  The session's last request gets the same leases again, but for those that it no longer holds. Older ones get none.
  [claim_dead]    An unknown or dead session gets None.
  [claim_writes]  A lease sets status, `epoch` (plus 1), `session`, `claim`, `claimed_at`, `claimed_steady` and `worker`, clears
                  `started_at`, and is counted. The session keeps the request's number, and its revision.

  [hot_add]      `add` adds jobs as puts do, or none. It counts each, and answers False for an id that is known.
  [hot_succeed]  `succeed` writes `settled`, `ended_at`, `started_at`, `fade_at` and the result, clears the lease, and counts each end. It
                 answers True again to a repeated call, False for another fence, and None for a job with ties.
  [hot_key]      The key of a job isn't a tie if its run names it, and if the key's record has this job as `holder` and no `next`. `succeed`
                 drops that record in the same step.
  [hot_tie]      If its run names the one job that awaits it, that isn't a tie either. `succeed` subtracts one from what that job awaits,
                 and puts the result as the run's note, in the same step. If there is such a note, it answers None.
  [hot_promote]  `promote` readies the jobs in `due` whose time has come, the first ones first. A HELD job is due from that instant on.
  [hot_fade]     `fade` buries jobs that need not be kept, with all but their ids and headers, and forgets them later. It returns those
                 with ties.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Generator, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from taskflow.broker.engine.records import Position

T = TypeVar("T")

MAX_FORGOTTEN: Final = 1_000
"""The maximum number of ids that `fade` forgets in addition to the jobs of its limit. After a burst, very many may be due."""


class Ref(NamedTuple):
    """Names a record."""

    kind: int
    id: bytes


Rev = bytes
"""A revision: an opaque token of 8 bytes. Callers compare revisions, and do nothing else with them."""

ABSENT: Final[Rev] = b""
"""The revision of a record that does not exist."""


# --- records and steps --------------------------------------------------------------------------------------------


class Record(NamedTuple):
    """A stored record.

    `sent`     the part that never changes; None if there is none
    `state`    the part that puts replace
    `content`  the payload of a job that has not succeeded, or the result of one that has; None unless the query asked for it
    `damage`   what couldn't be read, one line for each part: its name, a tab, and what is known about it. A header may then be empty
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
    """A number of microseconds after the store's time at the moment of an `apply`."""

    __slots__ = ()


NOW: Final = After(0)


class Put(NamedTuple):
    """Writes a record.

    `header`    the values of the fields; a missing one gets its default in a new record, and keeps its value in an existing one
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
    `wakes`   the topics to announce: those of sessions, and `topics.DUE`. The store announces READY jobs and ends by itself
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
    """A record has changed since it was read. `refs` is empty if the store does not know which."""

    refs: tuple[Ref, ...] = ()


class Locked(NamedTuple):
    """Another program's open transaction has locked these records."""

    refs: tuple[Ref, ...]


class Full(NamedTuple):
    """A bound would be exceeded. If the store has no room, `refs` is empty and `says` is the message for the caller."""

    refs: tuple[Ref, ...] = ()
    says: str = ""


Answer = Applied | Stale | Locked | Full


# --- reading ------------------------------------------------------------------------------------------------------


class Scan(NamedTuple):
    """Selects entries of the index named `of`, at most `limit`.

    `prefix`        the first fields of their positions; for an index with `entries`, its first value is the entry's
    `after`         entries after this position, in the direction of the scan
    `until`         entries up to this position, inclusive
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
    """The entries of an index with one prefix: their number, and the first and the last position if the index lists them.

    If the index is not `counted`, `size` is 0 and `last` is None.
    """

    prefix: Position
    size: int
    first: Position | None
    last: Position | None


class Query(NamedTuple):
    """Everything that one decision reads, in one round trip. Stores with snapshots use a single one.

    `groups`  index names, each with a prefix of the groups to return
    """

    refs: tuple[Ref, ...] = ()
    scans: tuple[Scan, ...] = ()
    groups: tuple[tuple[str, Position], ...] = ()
    with_content: bool = False
    with_totals: bool = False


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

    `grows`  True if the steps are Full when the store has no room
    `then`   a query to answer after them, in the same round trip
    """

    steps: Sequence[Step]
    grows: bool = False
    then: Query | None = None


class Add(NamedTuple):
    """Calls `Store.add`."""

    jobs: Sequence[Put]


class Succeed(NamedTuple):
    """Calls `Store.succeed`."""

    runs: Sequence[Run]


class Promote(NamedTuple):
    """Calls `Store.promote`."""

    limit: int


class Fade(NamedTuple):
    """Calls `Store.fade`."""

    limit: int
    max_kept: int
    repeat_for: int


class Run(NamedTuple):
    """A run that succeeded, for `succeed`. `ran_for` and `keep_for` are in microseconds. `key` is the id of its key's record.

    `awaited_by` is the one job that awaits it, and `note` the id of the note with its result, or empty if that job takes none.
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


class Claimed(NamedTuple):
    """The jobs that a session has leased, with their payloads.

    The headers may have only what a lease needs: `flags`, `priority`, `queue`, `job`, `created_at`, `due_at`, `expires_at`, `epoch`,
    `session` and `claim`. If a job has `since`, they have that too, or as its `due_at`.
    """

    records: list[Record]
    now: int


class Faded(NamedTuple):
    """The answer to `fade`.

    `buried`    how many jobs it buried
    `has_more`  True if it stopped at the limit
    `left`      expired jobs with ties, which the engine buries. The value is True if their queue has too many
    """

    buried: int
    has_more: bool
    left: dict[Ref, bool]


Effect = Query | Apply | Add | Succeed | Promote | Fade

Operation = Generator[Effect, Any, T]
"""A generator of the engine. It yields calls of the store's methods, receives their answers, and returns T. Because it has no `await`, it
can be run in a lock, in a transaction, or with `await`."""


class Store(Protocol):
    """A store of records. The methods of a store on a server are coroutines.

    Beside these, a store has a `claim(session, request, queues, limit)`. Its broker calls it for `claim_records`, with what the store's
    wake-ups need. It leases READY jobs that have not expired, from queues that are not paused, and returns `Claimed`. It returns None if
    the session is unknown or dead. Without queues, it takes every queue with READY jobs, beginning at a different one with each request.
    """

    def query(self, query: Query) -> Snapshot | Awaitable[Snapshot]: ...

    def apply(self, apply: Apply) -> _Applied | Awaitable[_Applied]: ...

    def add(self, jobs: Sequence[Put]) -> list[bool] | str | Awaitable[list[bool] | str]:
        """Add READY jobs without ties, as a whole. Return False for each id that is known, or a message if the store has no room.

        No two of the jobs have the same id.
        """
        ...

    def succeed(self, runs: Sequence[Run]) -> list[bool | None] | Awaitable[list[bool | None]]:
        """End runs as SUCCEEDED. Return True if it took effect now or before, False for another fence, None for a job with ties."""
        ...

    def promote(self, limit: int) -> tuple[int, int | None] | Awaitable[tuple[int, int | None]]:
        """Make due jobs READY. Return their number, and when the next one is due, or None."""
        ...

    def fade(self, limit: int, max_kept: int, repeat_for: int) -> Faded | Awaitable[Faded]:
        """Bury the ended jobs without ties that need not be kept, and forget buried ones `repeat_for` microseconds after their end.

        Each queue keeps at most `max_kept` FAILED jobs, and as many other ended ones. The oldest are buried first, and counted as
        `wording.DROPPED_OVER_CAP`. Any job is buried once its `fade_at` has come.
        """
        ...


_Applied = tuple[list[Answer], Snapshot | None]


def dispatch(store: Store, effect: Effect) -> Any:
    """Call the store method that an operation has yielded. Return its answer, or a coroutine if the store is on a server."""
    match effect:
        case Query():
            return store.query(effect)
        case Apply():
            return store.apply(effect)
        case Add(jobs):
            return store.add(jobs)
        case Succeed(runs):
            return store.succeed(runs)
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
