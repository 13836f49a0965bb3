"""Each store and struct has every stored field of a job, and treats it as declared. A field that one of them lacks fails here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

import taskflow
from taskflow.broker.literals import BURIED
from taskflow.broker.redis import claim as redis_claim, enqueue as redis_enqueue, fields as redis_fields, settle as redis_settle
from taskflow.broker.redis.jobs import Names
from taskflow.model.envelope import ClaimId, Envelope, OnConflict, is_plain, pack_extras, unpack_extras
from taskflow.model.job_schema import (
    AS_SENT,
    BY_NAME,
    FIELDS,
    OPAQUE,
    OUTCOME,
    Counters,
    Field,
    JobState,
    cleared_by,
    has_follow_up,
    has_tags,
)
from taskflow.model.record import Record
from tests.reference.job import StoredJob

PLAIN: Final = Envelope(id=b"i" * 16, job="work", payload=b"p")
BROKER: Final = Path(taskflow.__file__).parent / "broker"
SQL: Final = BROKER / "postgres"

OTHER_VALUES: Final[dict[str, Any]] = {
    "id": b"j" * 16, "job": "other", "queue": "other", "priority": 7, "payload": b"q", "after": 1.0, "at": 1, "expires": 1.0, "key": b"k",
    "on_conflict": OnConflict.REPLACE, "awaits": 1, "joins": (b"j" * 16,), "max_attempts": 3, "timeout": 2.0, "keep_result": 4.0,
    "headers": {"a": "b"}, "tags": ("import:42", "a"), "retry": taskflow.Backoff(base=5.0), "key_text": "k", "on_failure": b"call",
    "secrets": ("token",),
}  # fmt: skip
"""A value of each field of an envelope that is not its default."""


def sent_names() -> set[str]:
    return {name for field in FIELDS for name in field.sent}


def test_the_extras_of_a_job_with_a_follow_up_begin_in_a_way_of_their_own() -> None:
    """Stores look for these bytes alone, so no other field but the tags may come before, and the map must have a head of one byte."""
    assert len(OPAQUE) < 16
    for name, value in OTHER_VALUES.items():
        if name in {field.name for field in OPAQUE} - {"on_failure"}:
            without = msgspec.structs.replace(PLAIN, **{name: value})
            assert not has_follow_up(pack_extras(without))
            assert has_follow_up(pack_extras(msgspec.structs.replace(without, on_failure=b"call")))
        if name in {field.name for field in OPAQUE} - {"tags"}:
            without = msgspec.structs.replace(PLAIN, **{name: value})
            assert not has_tags(pack_extras(without))
            assert has_tags(pack_extras(msgspec.structs.replace(without, tags=("a",))))
    assert not has_follow_up(pack_extras(PLAIN))


# --- structs -----------------------------------------------------------------------------------------------------


def test_every_field_of_an_envelope_is_declared_as_sent_or_as_opaque() -> None:
    opaque = {field.name for field in OPAQUE}
    assert not sent_names() & opaque
    assert sent_names() | opaque | {"on_conflict"} == set(Envelope.__struct_fields__) == set(OTHER_VALUES)


def test_opaque_fields_have_different_letters_and_come_back() -> None:
    assert len({field.letter for field in OPAQUE}) == len(OPAQUE)
    for field in OPAQUE:
        changed = msgspec.structs.replace(PLAIN, **{field.name: OTHER_VALUES[field.name]})
        assert unpack_extras(pack_extras(changed)) == {field.name: OTHER_VALUES[field.name]}


def test_a_record_shows_declared_fields_only() -> None:
    declared = {field.name for field in FIELDS} | {field.name for field in OPAQUE}
    assert set(Record.__struct_fields__) - declared == {"job", "unreadable"}
    shown = {"worker", "progress", "reason", "errors", "waiting_for", "cancel_requested"}
    assert {field.name for field in FIELDS if not field.is_decided} - set(Record.__struct_fields__) == {"extras", "spoilt"}
    assert shown <= set(Record.__struct_fields__)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_the_memory_store_keeps_every_field(field: Field) -> None:
    names = {"name": "envelope", "extras": "envelope", "spoilt": "envelope"}
    assert names.get(field.name, field.name) in StoredJob.__struct_fields__


@pytest.mark.parametrize("name", AS_SENT)
def test_the_memory_store_takes_a_field_over_as_it_was_sent(name: str) -> None:
    envelope = msgspec.structs.replace(PLAIN, **{name: OTHER_VALUES[name]})
    assert getattr(StoredJob.of(envelope, 1, 2), name) == OTHER_VALUES[name]


@pytest.mark.parametrize("name", JobState.__struct_fields__)
def test_a_shared_field_has_its_declared_default(name: str) -> None:
    assert getattr(JobState(), name) == BY_NAME[name].default


def test_the_counters_are_declared_and_an_outcome_resets_some_of_them() -> None:
    assert Counters()._asdict() == {name: BY_NAME[name].default for name in Counters._fields}
    assert set(cleared_by(OUTCOME)) == {"crashes", "hand_backs", "parked_at"}


# --- plain jobs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OTHER_VALUES))
def test_an_envelope_with_a_decided_field_is_not_plain(name: str) -> None:
    changed = msgspec.structs.replace(PLAIN, **{name: OTHER_VALUES[name]})
    decided = {sent for field in FIELDS if not field.is_plain for sent in field.sent} | {
        field.name for field in OPAQUE if not field.is_plain
    }
    assert is_plain(PLAIN)
    assert is_plain(changed) == (name not in decided)


def test_the_fixed_layout_of_redis_holds_the_fields_of_a_plain_job_and_no_others() -> None:
    """`is_plain` in jobs.lua takes it for jobs without any field after `payload` but `extras`: a new field comes after both."""
    numbers = {field: number for number, field in enumerate(redis_fields.FIELDS)}
    never_sent = {"status", "seq", "created_at"}
    plain = {field.name for field in FIELDS if field.is_plain or field.name in never_sent}
    first = redis_fields.FIELDS[: numbers["payload"] + 1]
    assert {*first, "id", "extras"} == plain | {"due_at"}
    assert all(numbers[field.name] > numbers["extras"] for field in FIELDS if field.sent and field.name not in {*plain, "due_at"})


# --- stores ------------------------------------------------------------------------------------------------------


def test_redis_numbers_every_field_and_renumbers_none() -> None:
    assert set(redis_fields.FIELDS) == {field.name for field in FIELDS} - {"id"}
    assert redis_fields.FIELDS[:8] == ("status", "queue", "name", "priority", "seq", "created_at", "due_at", "payload")
    assert redis_fields.FIELDS.index("extras") == 18
    assert (redis_fields.FIELDS.index("spoilt"), redis_fields.FIELDS.index("cause")) == (35, 36)
    assert BY_NAME["status"].kind.most < BURIED


def values_of_layout(widths: dict[str, int]) -> dict[str, bytes]:
    """Return a value of each field, all different."""
    return {name: bytes([number]).rjust(width, b"\0") for number, (name, width) in enumerate(widths.items(), 1)}


def test_the_fixed_layout_of_redis_has_the_fields_of_a_plain_run_and_room_for_their_values() -> None:
    names = {"due": "due_at", "created": "created_at", "claimed": "claimed_at"}
    layout = {names.get(name, name): width for name, width in (redis_fields._WAITING | redis_fields._RUNNING).items()}
    parts_of_claim = {"session", "request", "number"}
    never_sent = {"status", "seq", "created_at", "due_at"}
    plain = {field.name for field in FIELDS if field.is_plain} | never_sent
    assert set(layout) - parts_of_claim == plain - {"id", "extras", "payload"} | {"epoch", "claimed_at", "claimed_steady"}
    assert (layout["session"], layout["request"] + layout["number"]) == (redis_fields.SESSION_BYTES, redis_fields.TAIL_BYTES)
    for name in ("status", "priority"):
        least, most = BY_NAME[name].kind[1:]
        assert -(1 << 8 * layout[name] - 1) <= least <= most < 1 << 8 * layout[name] - 1


def test_a_lease_of_redis_reads_each_field_of_the_fixed_layout_where_it_is() -> None:
    running, waiting = values_of_layout(redis_fields._RUNNING), values_of_layout(redis_fields._WAITING)
    running["status"] = waiting["status"] = bytes([redis_claim._RUNNING])
    numbers = {name: int.from_bytes(value) for name, value in waiting.items()}
    extras = pack_extras(msgspec.structs.replace(PLAIN, max_attempts=3)) or b""
    rest = b"\0\6worker" + b"".join(waiting.values()) + len(extras).to_bytes(2) + extras + b"\0\0\0\7payload"
    stored = b"".join(running.values()) + rest
    lease = redis_claim._plain_lease(b"i" * 16, stored, Names({numbers["queue"]: "mail", numbers["name"]: "send"}))
    assert lease.envelope == Envelope(
        id=b"i" * 16, job="send", queue="mail", priority=numbers["priority"], payload=b"payload", max_attempts=3
    )
    assert lease.claim == ClaimId(running["session"], int.from_bytes(running["request"]), int.from_bytes(running["number"]))
    assert (lease.epoch, lease.created_at) == (int.from_bytes(running["epoch"]), numbers["created"])

    fields = dict(zip(redis_fields.FIELDS, redis_claim._fields_of(stored), strict=True))
    claim = {"claim": running["session"] + running["request"] + running["number"], "epoch": lease.epoch, "created_at": lease.created_at}
    kept = {name: numbers[name] for name in ("queue", "name", "priority")} | {"payload": b"payload", "extras": extras, "status": 3}
    assert {name: value for name, value in fields.items() if value is not False} == kept | claim


def test_a_settlement_of_redis_has_the_fence_of_the_fixed_layout() -> None:
    first, last = redis_fields.SPANS["fence"]
    assert redis_settle._FENCE.size == last - first + 1
    running = values_of_layout(redis_fields._RUNNING)
    fence = running["epoch"] + running["session"] + running["request"] + running["number"]
    epoch, session, tail = redis_settle._FENCE.unpack(fence)
    assert (epoch, session) == (int.from_bytes(running["epoch"]), running["session"])
    assert (tail >> 16, tail & 0xFFFF) == (int.from_bytes(running["request"]), int.from_bytes(running["number"]))


@pytest.mark.parametrize("name", sorted(OTHER_VALUES))
def test_a_changed_field_of_an_envelope_changes_what_each_server_is_sent(name: str) -> None:
    keyed = msgspec.structs.replace(PLAIN, key=b"key")
    changed = msgspec.structs.replace(keyed, **{name: OTHER_VALUES[name]})
    assert redis_enqueue.pack_envelopes([changed]) != redis_enqueue.pack_envelopes([keyed])
    if name != "on_conflict":  # without a key it means nothing
        plain = msgspec.structs.replace(PLAIN, **{name: OTHER_VALUES[name]})
        assert redis_enqueue.pack_plain([plain]) != redis_enqueue.pack_plain([PLAIN])
