"""Each store and struct has every stored field of a job, and treats it as declared. A field that one of them lacks fails here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

import taskflow
from taskflow.model.envelope import Envelope, OnConflict, is_plain, pack_extras, unpack_extras
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


# --- stores ------------------------------------------------------------------------------------------------------
