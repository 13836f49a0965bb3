"""Declares the records: their kinds, header fields and indexes. Stores derive their tables, codecs and queries from these declarations."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, NamedTuple


class Kind:
    """The kinds of records. Never renumber them, because stores contain the numbers. They're plain integers because refs are hashed for
    each job, and an enum's hash is computed in Python."""

    JOB: Final = 0
    KEY: Final = 1
    """The id is the key's digest. The record names the live jobs that have the key."""
    SESSION: Final = 2
    SCHEDULE: Final = 3
    """The id is the schedule's name in UTF-8."""
    QUEUE: Final = 4
    """The id is the queue's name in UTF-8. The record exists while the queue is paused."""
    END: Final = 5
    """The id is that of a job that ended without a settlement."""
    ACTION: Final = 6
    """An entry of the audit log."""
    INBOX: Final = 7
    """The consequences that a caller's transaction leaves to the engine."""
    MARK: Final = 8
    """A fact about the whole store, such as an outage."""
    HISTORY: Final = 9
    """The workers' measurements in a period. The id is a session and a number, or a level and a number of periods since 1970."""
    GATE: Final = 10
    """A limit for one value of its key: see gates.py."""
    NOTE: Final = 11
    """The result or failure of a job in a flow, for a job that awaits it. The id is the latter's id and the input's number (4 bytes)."""
    FLOW: Final = 12
    """Work that remains to be done on the jobs of a flow: see flows.py."""
    TURN: Final = 13
    """The last place of a tenant's jobs in a line: see turns.py."""


TABLES: Final[Mapping[int, str]] = {
    Kind.JOB: "jobs",
    Kind.KEY: "keys",
    Kind.SESSION: "sessions",
    Kind.SCHEDULE: "schedules",
    Kind.QUEUE: "queues",
    Kind.END: "ends",
    Kind.ACTION: "actions",
    Kind.INBOX: "inbox",
    Kind.MARK: "facts",
    Kind.HISTORY: "history",
    Kind.GATE: "gates",
    Kind.NOTE: "notes",
    Kind.FLOW: "flows",
    Kind.TURN: "turns",
}
"""The table of each kind in SQL stores. PostgreSQL locks rows in this order, except that keys come before jobs. A release may add kinds and
indexes, but keeps everything that the previous release reads. Only an index with entries on an older kind needs a separate migration."""


class Owner(Enum):
    """The only writer of a field. A field without an owner may be written by any put or hot operation (a store's fast path: see seam.py).
    Each such write changes the record's revision."""

    CLAIM = "claim"
    ADDITION = "addition"
    STORE = "store"
    """The store writes the field once, when it creates the record."""


class Type(Enum):
    """The type of a header field."""

    SMALL = "small"
    """An integer from -32,768 to 32,767."""
    NUMBER = "number"
    """An integer of 64 bits. Instants and durations are in microseconds."""
    NAME = "name"
    """The name of a queue, a job or a worker. Stores may intern it."""
    BYTES = "bytes"


class Field(NamedTuple):
    """A field of a header.

    `owner`    the only writer of the field, or None
    `default`  the value in a new record that does not set the field; None if the field may be absent
    """

    name: str
    type: Type
    default: Any = None
    owner: Owner | None = None


class Flag:
    """Facts about a job that hot operations (a store's fast paths) need. They're plain integers for the same reason as kinds."""

    KEYED: Final = 1
    AWAITED: Final = 2
    """Other jobs await this job's end."""
    TAGGED: Final = 4
    STATED: Final = 8
    """The job has a state that a successful run changes, such as a counter to be reset."""
    MARKED: Final = 16
    """The job was asked to stop."""
    POISON: Final = 32
    ARRIVING: Final = 64
    """A caller's transaction added the job, and the engine hasn't admitted it yet. Until then BEHIND is set, so nothing makes it READY."""
    SPOILT: Final = 128
    BEHIND: Final = 256
    """The job is HELD until a running job with the same key has ended. This isn't part of `awaits`: with a single counter, an additional
    join would release the job while the other job still runs."""
    PAUSED: Final = 1024
    """The job is SCHEDULED because its name was paused when it was claimed: see `job_pauses`."""
    LIMITED: Final = 512
    """The job has gates. While it's READY or RUNNING, it holds a slot of each, so only the engine makes it READY and ends its runs."""
    FAIR: Final = 2048
    """The job has a tenant. Once it's READY or waits at a gate, its `due_at` is a place in a line: see turns.py."""
    ADMITTED: Final = LIMITED | FAIR
    """Only the engine makes these jobs READY."""
    NOTED: Final = 4096
    """The job takes results of other jobs of its flow as inputs."""
    MEMBER: Final = 8192
    """The job belongs to a flow, so it has `member`."""
    MANY_GATES: Final = 16384
    """The job has more than one gate, so a slot of one of them isn't enough to make it READY."""
    TIES: Final = LIMITED | KEYED | AWAITED | STATED | POISON | ARRIVING | SPOILT | NOTED
    """The ties of a job: `succeed` leaves jobs with any of these flags to the engine."""
    KEPT_APART: Final = TAGGED | NOTED
    """`fade` leaves jobs with these flags to the engine, because more than their own records has to be removed."""


HELD, SCHEDULED, READY, RUNNING, SUCCEEDED, FAILED, CANCELLED, BURIED = range(8)
"""The statuses, as numbers in the header. A BURIED job has been dropped, but its id and fence are remembered for a while."""

_F, _N, _S, _B, _NAME = Field, Type.NUMBER, Type.SMALL, Type.BYTES, Type.NAME

HEADERS: Final[Mapping[int, tuple[Field, ...]]] = {
    Kind.JOB: (
        _F("status", _S, READY),
        _F("flags", _S, 0),
        _F("priority", _S, 0),
        _F("queue", _NAME, ""),
        _F("job", _NAME, ""),
        _F("seq", _N, 0, Owner.STORE),
        _F("created_at", _N, 0, Owner.STORE),
        _F("due_at", _N, 0),
        _F("expires_at", _N),
        _F("awaits", _N, 0, Owner.ADDITION),
        _F("epoch", _N, 0),
        _F("session", _B),  # the current lease's session
        _F("claim", _B),  # of the current lease: the number of the request (8 bytes), and the lease's number in the answer (4 bytes)
        _F("claimed_at", _N),
        _F("claimed_steady", _N),
        _F("worker", _NAME),  # a claim copies the name of its session
        _F("started_at", _N),  # when the run of this epoch started, once its worker has reported it; a claim clears the field
        _F("settled", _B),  # the fence of the last settlement: epoch, session, claim, and 1 if it was made in a caller's transaction
        _F("ended_at", _N),
        _F("fade_at", _N),
        _F("cause", _B),
        _F("gate", _B),  # the gate at which a SCHEDULED job waits
        _F("member", _B),  # of a job in a flow: the flow's id (16 bytes), and the job's number in the flow (4 bytes)
        _F("since", _N),  # when an ADMITTED job became READY, or a FAIR one took its place in a line
    ),
    # `holder` is a live job, and `next` waits behind it while it runs. The record doesn't show which of them waits and which one runs,
    # because a claim changes that without seeing the key. A decision about a key loads both jobs, and expects their revisions.
    Kind.KEY: (_F("holder", _B), _F("next", _B)),
    Kind.SESSION: (
        _F("name", _NAME, ""),
        _F("ttl", _N, 0),
        _F("beat_at", _N, 0),
        _F("lapses_at", _N, 0),
        _F("dead_at", _N),
        _F("is_released", _S, 0),
        _F("wants_ends", _S, 0),
        _F("request", _N, 0, Owner.CLAIM),
    ),
    Kind.SCHEDULE: (_F("offer_at", _N), _F("is_paused", _S, 0)),
    Kind.QUEUE: (_F("is_paused", _S, 0),),
    Kind.END: (_F("seq", _N, 0, Owner.STORE),),
    Kind.ACTION: (_F("seq", _N, 0, Owner.STORE), _F("created_at", _N, 0, Owner.STORE)),
    Kind.INBOX: (_F("seq", _N, 0, Owner.STORE),),
    Kind.MARK: (),
    Kind.HISTORY: (_F("level", _S, 0), _F("at", _N, 0), _F("rolls_at", _N, 0)),
    # `taken` of `most` slots are held. `has_waiting` is 1 once a job waits here, until no job is found waiting although the gate has room.
    # While it is 1, a gate with room has `is_open` set. A rate has `tat` instead of slots (see `model/limits.py`).
    Kind.GATE: (
        _F("taken", _N, 0),
        _F("most", _N, 0),
        _F("has_waiting", _S, 0),
        _F("is_open", _S, 0),
        _F("is_set", _S, 0),  # an operator has set `most`, rather than the last sender
        _F("tat", _N),
        _F("closed_until", _N),
    ),
    Kind.NOTE: (_F("size", _N, 0),),
    Kind.FLOW: (_F("seq", _N, 0, Owner.STORE),),
    Kind.TURN: (_F("place", _N, 0), _F("used_at", _N, 0)),
}


class Index(NamedTuple):
    """An index of the records of one kind. The engine ensures that positions are unique and that no field of a position is None.

    `when`    a condition on the header. Its syntax is common to SQL and Python, except for `IS NULL`, `IS NOT NULL`, `AND` and `OR`
    `at`      the fields of an entry's position, in order; "-x" sorts in descending order. "id" is the record's id
    `entries` the type of the values, if a record has one entry for each value that its put lists; a position begins with the value
    `groups`  how many leading fields of the position form a group, whose entries are counted
    `listed`  False if entries are only counted
    `counted` False if a group has only its first position: its size is 0, and its last position None
    """

    name: str
    kind: int
    when: str
    at: tuple[str, ...]
    entries: Type | None = None
    groups: int = 0
    listed: bool = True
    counted: bool = True


INDEXES: Final = (
    Index("status", Kind.JOB, "status < 7", ("queue", "status"), groups=2, listed=False),
    Index("ready", Kind.JOB, "status = 2", ("queue", "-priority", "due_at", "seq"), groups=2, counted=False),
    Index("scheduled", Kind.JOB, "status = 1", ("queue", "due_at", "seq"), groups=1, counted=False),
    Index("due", Kind.JOB, "(status = 1 OR status = 0 AND awaits <= 0 AND flags & 256 = 0) AND flags & 2560 = 0", ("due_at", "seq")),
    Index("parked", Kind.JOB, "status = 1 AND flags & 1024 <> 0", ("job", "due_at", "seq")),
    Index(
        "to_admit",
        Kind.JOB,
        "(status = 1 OR status = 0 AND awaits <= 0 AND flags & 256 = 0) AND flags & 2560 <> 0 AND gate IS NULL",
        ("due_at", "seq"),
    ),
    Index("gated", Kind.JOB, "gate IS NOT NULL", ("gate", "-priority", "due_at", "seq")),
    Index(
        "holding",
        Kind.JOB,
        "status = 2 AND flags & 512 <> 0 AND since IS NOT NULL",
        ("queue", "since", "seq"),
        groups=1,
        counted=False,
    ),
    Index("fair", Kind.JOB, "status = 2 AND flags & 2048 <> 0", ("queue", "-priority", "due_at", "seq")),
    Index("fair_since", Kind.JOB, "status = 2 AND flags & 2048 <> 0 AND since IS NOT NULL", ("queue", "since", "seq")),
    Index("held", Kind.JOB, "status = 0", ("seq",)),
    Index("leases", Kind.JOB, "status = 3", ("session", "claim"), groups=1),
    Index("marked", Kind.JOB, "status = 3 AND flags & 16 <> 0", ("session", "claim")),
    Index("expiring", Kind.JOB, "status < 3 AND expires_at IS NOT NULL", ("expires_at", "id")),
    Index("ended", Kind.JOB, "status > 3 AND status < 7", ("status", "queue", "ended_at", "seq")),
    Index("fading", Kind.JOB, "fade_at IS NOT NULL", ("fade_at", "id")),
    Index("causes", Kind.JOB, "status = 5", ("cause", "job", "queue", "ended_at", "seq", "id"), groups=3),
    Index("tags", Kind.JOB, "status < 7", ("id",), entries=Type.NAME),
    Index("flow", Kind.JOB, "member IS NOT NULL AND status < 7", ("member", "id")),
    Index("flow_live", Kind.JOB, "member IS NOT NULL AND status < 4", ("member", "id")),
    Index("arriving", Kind.JOB, "flags & 64 <> 0", ("seq",)),
    Index("lapsing", Kind.SESSION, "dead_at IS NULL", ("lapses_at", "id")),
    Index("beats", Kind.SESSION, "", ("-beat_at", "id")),
    Index("dying", Kind.SESSION, "dead_at IS NOT NULL AND is_released = 0", ("dead_at", "id")),
    Index("gone", Kind.SESSION, "dead_at IS NOT NULL AND is_released = 1", ("dead_at", "id")),
    Index("hearers", Kind.SESSION, "wants_ends = 1 AND dead_at IS NULL", ("id",)),
    Index("offers", Kind.SCHEDULE, "offer_at IS NOT NULL", ("offer_at", "id")),
    Index("schedules", Kind.SCHEDULE, "", ("id",)),
    Index("declared", Kind.SCHEDULE, "", ("id",), entries=Type.BYTES),
    Index("paused", Kind.QUEUE, "is_paused = 1", ("id",)),
    Index("ends", Kind.END, "", ("seq",)),
    Index("actions", Kind.ACTION, "", ("seq",)),
    Index("inbox", Kind.INBOX, "", ("seq",)),
    Index("history", Kind.HISTORY, "", ("level", "at", "id")),
    Index("rolling", Kind.HISTORY, "", ("rolls_at", "id")),
    Index("gates", Kind.GATE, "", ("id",)),
    Index("rates", Kind.GATE, "tat IS NOT NULL", ("tat", "id")),
    Index("open", Kind.GATE, "is_open = 1", ("id",)),
    Index("notes", Kind.NOTE, "", ("id",)),
    Index("flows", Kind.FLOW, "", ("seq",)),
    Index("turns", Kind.TURN, "", ("used_at", "id")),
)

Position = tuple[Any, ...]
"""A position in an index: the values of its fields, negated for a descending field."""
