"""Jobs as the engine handles them: a record's header and its two decoded bodies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from taskflow.broker.engine.records import BURIED, HELD, READY, RUNNING, Flag, Kind
from taskflow.broker.engine.seam import KEEP, NOW, After, Keep, Put, Record, Ref
from taskflow.model import wording
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.envelope import ClaimId, Envelope, Lease, pack_extras, unpack_extras
from taskflow.model.flow import MAX_MEMBERS, Member, Tie, check_member, numbered
from taskflow.model.ids import ID_BYTES
from taskflow.model.job_schema import MAX_PAYLOAD, Counters
from taskflow.model.limits import Gate
from taskflow.model.record import BY_CODE, Record as JobRecord, Status, record_of
from taskflow.model.stored_values import MAX_RAW, FieldReader, Unreadable, maybe
from taskflow.model.transitions import due_at
from taskflow.model.verdict import RunError, append_error


class Sent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A job's `sent` body, decoded: the parts of an envelope that no store interprets. `joins` consists of the ids in `joined`."""

    extras: bytes | None = None
    key: bytes | None = None
    joins: bytes = b""
    limits: tuple[Gate, ...] = ()
    member: Member | None = None
    ties: tuple[Tie, ...] = ()

    @property
    def joined(self) -> list[bytes]:
        """The ids of the jobs that await this job."""
        if len(self.joins) == ID_BYTES:
            return [self.joins]
        return [self.joins[at : at + ID_BYTES] for at in range(0, len(self.joins), ID_BYTES)]


class State(msgspec.Struct, omit_defaults=True, gc=False):
    """A job's `state` body, decoded. Texts are UTF-8 that may contain lone surrogates. Field names are short because each job stores them.

    `errors`        the errors of earlier runs, as `append_error` packs them
    `progress`      the epoch of the run that reported it, and the progress, which is valid only for that run
    `stop`          why the running job was asked to stop
    `waiting`       what a waiting job waits for, other than its time, a worker or a gate
    `behind`        the running job with the same key, which this job waits for
    `spoilt`        a previous state that could not be decoded
    `existing`      for a record that only remembers a call: the job that represents the call
    `place`         for a job that a pause has parked: its former due time
    `replaces`      for an arrival (see arrivals.py): True if it replaces a waiting job with its key, False if it gives way to a live one
    `replaced`      for an arrival: the job that replaced it in the same transaction
    `limits`        gates that a worker has added because the sender didn't know them
    `paid`          while the job waits for its time: the rate that it has paid for
    `cancelled_by`  the job of its flow whose failure has cancelled this job, or the flow itself
    `counted`       True if the job has failed and the jobs that collect failures have counted it
    `spent`         the jobs that had already begun with this job's failure when it was retried; they receive nothing more from it
    """

    failures: int = msgspec.field(default=0, name="f")
    crashes: int = msgspec.field(default=0, name="c")
    snoozes: int = msgspec.field(default=0, name="s")
    hand_backs: int = msgspec.field(default=0, name="h")
    parked_at: int | None = msgspec.field(default=None, name="p")
    errors: bytes | None = msgspec.field(default=None, name="e")
    progress: tuple[int, bytes] | None = msgspec.field(default=None, name="g")
    stop: bytes | None = msgspec.field(default=None, name="x")
    reason: bytes | None = msgspec.field(default=None, name="r")
    waiting: bytes | None = msgspec.field(default=None, name="w")
    behind: bytes | None = msgspec.field(default=None, name="b")
    spoilt: bytes | None = msgspec.field(default=None, name="u")
    replaces: bool = msgspec.field(default=False, name="k")
    replaced: bytes | None = msgspec.field(default=None, name="l")
    place: int | None = msgspec.field(default=None, name="q")
    existing: bytes | None = msgspec.field(default=None, name="n")
    limits: tuple[Gate, ...] = msgspec.field(default=(), name="m")
    paid: bytes | None = msgspec.field(default=None, name="d")
    cancelled_by: bytes | None = msgspec.field(default=None, name="o")
    counted: bool = msgspec.field(default=False, name="j")
    spent: tuple[bytes, ...] = msgspec.field(default=(), name="t")

    @property
    def has_to_be_reset(self) -> bool:
        """True if the state has fields that a successful run clears. Other fields, such as errors, remain."""
        has_texts = not self.reason is self.waiting is self.spoilt is self.replaced is None
        return bool(has_texts or self.crashes or self.hand_backs or self.replaces or self.spent) or self.parked_at is not None


NO_STATE: Final = State()
_NOT_SENT: Final = Sent()
_NOTHING: Final[dict[str, Any]] = {}
encode: Final = msgspec.msgpack.Encoder().encode
"""Packs a `Sent` or a `State` in the form in which records store it."""

_sent_in: Final = msgspec.msgpack.Decoder(Sent).decode
_decode_state: Final = msgspec.msgpack.Decoder(State).decode


def _decode_sent(body: bytes) -> Sent:
    """Decode a `Sent`. Raises MsgspecError, or ValueError if the job's place in a flow is impossible."""
    sent = _sent_in(body)
    if sent.member is not None:
        check_member(sent.member, sent.joined, sent.ties)
    return sent


def decode_sent(body: bytes | None) -> Sent:
    """Decode a `Sent`. A missing or undecodable one counts as empty."""
    try:
        return _NOT_SENT if body is None else _decode_sent(body)
    except (msgspec.MsgspecError, ValueError):
        return _NOT_SENT


def _lost(record: Record) -> Sent:
    """Return a substitute for an unreadable `Sent`. It keeps the job in its flow, whose other jobs must not wait for it forever."""
    place = record.header.get("member") or b""
    flow, number = place[:ID_BYTES], int.from_bytes(place[ID_BYTES:], "big")
    return _NOT_SENT if len(flow) != ID_BYTES or number >= MAX_MEMBERS else Sent(member=Member(flow, number, 0, MAX_MEMBERS - 1))


class Job:
    """A job that an operation reads and may change. Its header and its state are changed in place."""

    __slots__ = (
        "content",
        "entries",
        "header",
        "id",
        "new_content",
        "ref",
        "restarts",
        "sent",
        "sent_body",
        "state",
        "stored",
        "unreadable",
    )

    def __init__(self, ref: Ref, header: dict[str, Any], sent: Sent, state: State) -> None:
        self.ref, self.id, self.header, self.sent, self.state = ref, ref.id, header, sent, state
        self.stored: Mapping[str, Any] | None = None
        self.content: bytes | None = None
        self.new_content: bytes | Keep | None = KEEP
        self.entries: dict[str, tuple[str | bytes, ...]] | None = None
        self.sent_body: bytes | Keep | None = KEEP
        self.restarts = False
        self.unreadable: tuple[Unreadable, ...] = ()

    @classmethod
    def of_record(cls, record: Record) -> Job:
        """Decode a stored job. A body that cannot be decoded counts as empty and is listed in `unreadable`."""
        if record.damage is not None:
            return cls._of_damaged(record)
        try:
            sent = _NOT_SENT if record.sent is None else _decode_sent(record.sent)
            state = State() if record.state is None else _decode_state(record.state)
        except (msgspec.MsgspecError, ValueError):
            return cls._of_damaged(record)
        job = cls(record.ref, dict(record.header), sent, state)
        job.stored = record.header
        job.content = record.content
        if state.spoilt is not None:
            job.unreadable = (Unreadable("state", "it could not be decoded", state.spoilt[:MAX_RAW]),)
        return job

    @classmethod
    def _of_damaged(cls, record: Record) -> Job:
        reader = FieldReader()
        for line in (record.damage or "").splitlines():
            name, _, stored = line.partition("\t")
            reader.note(name, stored, "the store could not return it")
        sent = _lost(record) if record.sent is None else reader.read("sent", record.sent, _decode_sent, _lost(record))
        state = State() if record.state is None else reader.read("state", record.state, _decode_state, State())
        if record.state is not None and state == NO_STATE:
            state.spoilt = record.state
        job = cls(record.ref, dict(record.header), sent, state)
        if not any(each.column == "queue" for each in reader.unreadable):  # otherwise a put gives it a valid queue
            job.stored = record.header  # so a put leaves unreadable fields as they are
        job.unreadable = reader.unreadable
        job.content = record.content
        return job

    @classmethod
    def of_envelope(cls, envelope: Envelope, now: int) -> Job:
        """Return a new READY job. If it's already due, the time at which the store adds it becomes its due time."""
        extras, key, joins = pack_extras(envelope), envelope.key, b"".join(envelope.joins)
        due = due_at(envelope, now)
        header: dict[str, Any] = {
            "status": READY,
            "flags": _flags(envelope),
            "priority": envelope.priority,
            "queue": envelope.queue,
            "job": envelope.job,
            "due_at": NOW if due <= now else due,
            "awaits": envelope.awaits,
        }
        if envelope.expires is not None:
            header["expires_at"] = After(to_microseconds(envelope.expires))
        if envelope.member is not None:
            header["member"] = numbered(envelope.member.flow, envelope.member.number)
        sent = Sent(extras, key, joins, envelope.limits, envelope.member, envelope.ties)
        job = cls(Ref(Kind.JOB, envelope.id), header, sent, State())
        job.new_content = envelope.payload
        job.sent_body = None if job.sent == _NOT_SENT else encode(job.sent)
        job.entries = {"tags": envelope.tags} if envelope.tags else None
        return job

    def to_put(self) -> Put:
        state = None if self.state == NO_STATE else encode(self.state)
        self.set_flag(Flag.STATED, state is not None and self.state.has_to_be_reset)
        stored = self.stored
        header = self.header if stored is None else {name: value for name, value in self.header.items() if stored[name] != value}
        return Put(self.ref, header, state, self.sent_body, self.new_content, self.restarts, self.entries)

    # --- the header ------------------------------------------------------------------------------------------

    @property
    def status(self) -> int:
        code: int = self.header["status"]
        return code

    @property
    def queue(self) -> str:
        name: str = self.header["queue"]
        return name

    @property
    def limits(self) -> tuple[Gate, ...]:
        return self.sent.limits + self.state.limits

    def extra(self, name: str) -> Any:
        """Return a field of the envelope's extras, or None if it's missing or can't be decoded."""
        try:
            return unpack_extras(self.sent.extras).get(name)
        except Exception:  # another program may have written any bytes
            return None

    @property
    def waiting_for(self) -> bytes | None:
        """Encoded text about what else a waiting job needs besides its due time and a worker. None if it needs nothing else."""
        gate_id = self.header["gate"]
        if gate_id is None:
            return self.state.waiting
        gate = next((gate for gate in self.limits if gate.id == gate_id), None)
        return text_bytes(wording.waits_for_resume(self.queue) if gate is None else wording.waits_at_gate(gate.limit, gate.key))

    @property
    def is_live(self) -> bool:
        return self.status <= RUNNING

    @property
    def is_waiting(self) -> bool:
        return self.status <= READY

    def holds(self, claim: ClaimId) -> bool:
        """Return True if this is the claim of the current lease."""
        return self.status == RUNNING and (self.header["session"], self.header["claim"]) == claim_bytes(claim)

    def end_lease(self) -> None:
        self.header |= {"session": None, "claim": None}

    def has(self, flag: int) -> bool:
        return bool(self.header["flags"] & flag)

    def set_flag(self, flag: int, is_set: bool) -> None:
        self.header["flags"] = self.header["flags"] | flag if is_set else self.header["flags"] & ~flag

    def add_awaited(self, n: int) -> None:
        """Apply an addition to `awaits` in memory, for later decisions. Puts still don't write `awaits`, even if they restart the job."""
        self.header["awaits"] += n
        if self.stored is not None:
            self.stored = {**self.stored, "awaits": self.header["awaits"]}

    def is_kept(self, now: int) -> bool:
        return self.is_live or (self.status != BURIED and (self.header["fade_at"] or 0) > now)

    # --- the state -------------------------------------------------------------------------------------------

    @property
    def counters(self) -> Counters:
        state = self.state
        return Counters(state.failures, state.crashes, state.snoozes, state.hand_backs, state.parked_at)

    @counters.setter
    def counters(self, counters: Counters) -> None:
        state = self.state
        state.failures, state.crashes, state.snoozes, state.hand_backs, state.parked_at = counters

    @property
    def cancel_requested(self) -> str | None:
        """Why the job was asked to stop, or None."""
        return maybe(self.state.stop, _text)

    @property
    def run_started_at(self) -> int | None:
        """When the run started, or when the job was claimed if the worker has not reported the start. None if no worker has claimed it."""
        started_at: int | None = self.header["started_at"]
        claimed_at: int | None = self.header["claimed_at"]
        return claimed_at if started_at is None else started_at

    def add_error(self, error: RunError, now: int) -> None:
        self.state.errors = append_error(self.state.errors, error.of_run(self.header["worker"], self.run_started_at, now))

    def set_progress(self, packed: bytes) -> None:
        self.state.progress = (self.header["epoch"], packed)

    # --- what leaves the engine ------------------------------------------------------------------------------

    def to_record(self) -> JobRecord:
        reader = FieldReader()
        extras = reader.read("sent", self.sent.extras, unpack_extras, _NOTHING)
        status = BY_CODE[self.status]
        found = record_of(_Shown(self, status), reader, id=self.id, name=self.header["job"], queue=self.queue, status=status, extras=extras)
        return msgspec.structs.replace(found, unreadable=self.unreadable + reader.unreadable) if self.unreadable else found

    @classmethod
    def lease_of(cls, record: Record, now: int) -> Lease:
        """Return the lease on a stored job. For jobs without a state, which most jobs are, this is faster than `to_lease`."""
        if record.state is not None or record.damage is not None:
            return cls.of_record(record).to_lease(now)
        header = record.header
        claim: bytes = header["claim"]
        if record.sent is None and header["expires_at"] is None:  # a plain job
            return Lease(
                envelope=Envelope(
                    id=record.ref.id, job=header["job"], queue=header["queue"], priority=header["priority"], payload=record.content or b""
                ),
                epoch=header["epoch"],
                claim=ClaimId(header["session"], int.from_bytes(claim[:8]), int.from_bytes(claim[8:])),
                created_at=header["created_at"],
                waited=now - header["due_at"],
            )
        try:
            sent = _NOT_SENT if record.sent is None else _sent_in(record.sent)
            if sent.member is not None:
                check_member(sent.member, sent.joined, sent.ties)
            extras = _NOTHING if sent.extras is None else unpack_extras(sent.extras)
        except Exception:  # includes msgpack's own errors
            return cls.of_record(record).to_lease(now)
        return Lease(
            envelope=Envelope(
                id=record.ref.id,
                job=header["job"],
                queue=header["queue"],
                priority=header["priority"],
                payload=record.content or b"",
                key=sent.key,
                limits=sent.limits,
                **(_NOTHING if sent.member is None else in_flow(sent)),
                **extras,
            ),
            epoch=header["epoch"],
            claim=ClaimId(header["session"], int.from_bytes(claim[:8], "big"), int.from_bytes(claim[8:], "big")),
            created_at=header["created_at"],
            waited=now - ready_since(header),
            expires_in=None if header["expires_at"] is None else to_seconds(header["expires_at"] - now),
        )

    def to_lease(self, now: int) -> Lease:
        header, unreadable = self.header, self.unreadable
        if self.sent.extras is None:
            extras = _NOTHING
        else:
            reader = FieldReader()
            extras = reader.read("sent", self.sent.extras, unpack_extras, _NOTHING)
            unreadable += reader.unreadable
        envelope = Envelope(
            id=self.id,
            job=header["job"],
            queue=self.queue,
            priority=header["priority"],
            payload=self.content or b"",
            key=self.sent.key,
            limits=self.limits,
            **in_flow(self.sent),
            **extras,
        )
        poison = maybe(self.state.reason, _text) if self.has(Flag.POISON) else None
        failures, crashes, snoozes, hand_backs, parked_at = self.counters
        return Lease(
            envelope=envelope,
            epoch=header["epoch"],
            claim=claim_id(header["session"], header["claim"]),
            created_at=header["created_at"],
            waited=now - ready_since(header),
            failures=failures,
            crashes=crashes,
            snoozes=snoozes,
            hand_backs=hand_backs,
            parked_for=0.0 if parked_at is None else to_seconds(now - parked_at),
            expires_in=None if header["expires_at"] is None else to_seconds(header["expires_at"] - now),
            unreadable=unreadable,
            poison=poison,
        )


def put_of_plain(envelope: Envelope) -> Put:
    """Return the `Put` of a new, due job without ties. `Job.of_envelope` would give the same `Put`, but takes several times as long."""
    extras = pack_extras(envelope)
    header: dict[str, Any] = {
        "status": READY,
        "flags": 0,
        "priority": envelope.priority,
        "queue": envelope.queue,
        "job": envelope.job,
        "due_at": NOW,
    }
    if envelope.expires is not None:
        header["expires_at"] = After(to_microseconds(envelope.expires))
    return Put(Ref(Kind.JOB, envelope.id), header, None, None if extras is None else encode(Sent(extras)), envelope.payload)


class _Shown:
    """A job with the attributes that `record_of` reads."""

    def __init__(self, job: Job, status: Status | None = None) -> None:
        header, state = job.header, job.state
        self.id, self.priority, self.cause = job.id, header["priority"], header["cause"]
        self.created_at, self.due_at, self.expires_at = header["created_at"], ready_since(header), header["expires_at"]
        self.claimed_at, self.started_at, self.ended_at = header["claimed_at"], header["started_at"], header["ended_at"]
        self.epoch, self.worker = header["epoch"], header["worker"]
        self.failures, self.crashes, self.snoozes, self.hand_backs, self.parked_at = job.counters
        self.errors, self.behind, self.cancel_requested, self.reason = state.errors, state.behind, state.stop, state.reason
        self.awaited = max(0, header["awaits"]) if header["status"] == HELD else 0
        member = job.sent.member
        by = state.cancelled_by
        self.in_flow = _NOTHING if member is None else {"member": member, "joins": tuple(job.sent.joined), "cancelled_by": by}
        self.waiting_for = job.waiting_for if job.is_waiting else None
        self.progress = state.progress[1] if state.progress is not None and state.progress[0] == header["epoch"] else None
        self.result, self.payload = result_and_arguments(job.content) if status is Status.SUCCEEDED else (None, job.content)


def _flags(envelope: Envelope) -> int:
    keyed, awaited, tagged = envelope.key is not None, bool(envelope.joins), bool(envelope.tags)
    noted = Flag.NOTED if envelope.member is not None and envelope.member.inputs else 0
    flags = Flag.KEYED * keyed | Flag.AWAITED * awaited | Flag.TAGGED * tagged | noted
    flags |= Flag.MEMBER * (envelope.member is not None) | Flag.MANY_GATES * (len(envelope.limits) > 1)
    return flags | Flag.LIMITED * bool(envelope.limits) | Flag.FAIR * (envelope.fair is not None)


def in_flow(sent: Sent) -> dict[str, Any]:
    """Return the fields that an envelope has only if its job belongs to a flow, or an empty dict if it belongs to none."""
    return {} if sent.member is None else {"member": sent.member, "joins": tuple(sent.joined), "ties": sent.ties}


def ready_since(header: Mapping[str, Any]) -> int:
    """Return when a job was due. For a job with a tenant, whose `due_at` is a place in a line, return when it took that place."""
    due_at: int = header["due_at"]
    return (header.get("since") or due_at) if header["flags"] & Flag.FAIR else due_at


def _text(stored: bytes) -> str:
    return stored.decode(errors="surrogatepass")


def text_bytes(text: str | None) -> bytes | None:
    """Encode text as the bytes that a job's `State` stores."""
    return None if text is None else text.encode(errors="surrogatepass")


# --- claims and fences --------------------------------------------------------------------------------------------


def claim_bytes(claim: ClaimId) -> tuple[bytes, bytes]:
    """Return a claim as the two fields that a header stores."""
    return claim.session, claim.request.to_bytes(8, "big") + claim.number.to_bytes(4, "big")


def claim_id(session: bytes, claim: bytes) -> ClaimId:
    return ClaimId(session, int.from_bytes(claim[:8], "big"), int.from_bytes(claim[8:], "big"))


# --- the content of a successful job ------------------------------------------------------------------------------

_KEPT: Final = b"\0kept"
"""The first bytes of a successful job's content if its arguments are kept. The size of the result (4 bytes), the result, and the payload
follow. No encoded result begins with 0, because no payload version is 0."""
_RESULT_AT: Final = len(_KEPT) + 4


def content_of(result: bytes, arguments: bytes | None) -> bytes:
    """Return the content of a job that has succeeded. Arguments are left out if they and the result are too large for a store."""
    if arguments is None or len(arguments) + len(result) > MAX_PAYLOAD:
        return result
    return _KEPT + len(result).to_bytes(4, "big") + result + arguments


def result_and_arguments(content: bytes | None) -> tuple[bytes | None, bytes | None]:
    """Return the result of a job that has succeeded, and its payload if that was kept."""
    if content is None or not content.startswith(_KEPT):
        return content, None
    end = _RESULT_AT + int.from_bytes(content[len(_KEPT) : _RESULT_AT], "big")
    return content[_RESULT_AT:end], content[end:]


def fence_bytes(epoch: int, session: bytes, claim: bytes, *, is_committed: bool = False) -> bytes:
    """Return a fence as it's stored in a header. `is_committed` is True for a settlement in a caller's transaction."""
    return epoch.to_bytes(8, "big") + session + claim + bytes([is_committed])
