"""Each field of an envelope is plain, decided or opaque, and is treated as declared. A field that is missing in the declarations fails
here."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import pytest

import taskflow
from taskflow.model.envelope import Envelope, OnConflict, is_plain, pack_extras, unpack_extras
from taskflow.model.flow import Member, Tie
from taskflow.model.job_schema import NOT_PLAIN, OPAQUE, has_follow_up, has_tags
from taskflow.model.limits import Gate

PLAIN: Final = Envelope(id=b"i" * 16, job="work", payload=b"p")
DECIDED_AND_PLAIN: Final = {"id", "job", "queue", "priority", "payload"}
"""The fields that stores act on, and that the fast paths handle."""

OTHER_VALUES: Final[dict[str, Any]] = {
    "id": b"j" * 16, "job": "other", "queue": "other", "priority": 7, "payload": b"q", "after": 1.0, "at": 1, "expires": 1.0, "key": b"k",
    "on_conflict": OnConflict.REPLACE, "awaits": 1, "joins": (b"j" * 16,), "max_attempts": 3, "timeout": 2.0, "keep_result": 4.0,
    "headers": {"a": "b"}, "tags": ("import:42", "a"), "retry": taskflow.Backoff(base=5.0), "key_text": "k", "on_failure": b"call",
    "secrets": ("token",), "throttle": 60.0, "at_most": 60.0, "limits": (Gate(b"g" * 16, "limit", "", 1),),
    "member": Member(b"f" * 16, 1, 0, 2), "ties": (Tie(0),), "fair": b"t" * 16,
}  # fmt: skip
"""For each field of an envelope, a value that is not its default."""


def test_the_extras_of_a_job_with_a_follow_up_begin_in_a_way_of_their_own() -> None:
    """Stores search only for these bytes, so no other field but the tags may come before, and the map must have a head of one byte."""
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


def test_every_field_of_an_envelope_is_declared() -> None:
    declared = [*DECIDED_AND_PLAIN, "on_conflict", "at_most", *NOT_PLAIN, *(field.name for field in OPAQUE)]
    assert sorted(declared) == sorted(Envelope.__struct_fields__) == sorted(OTHER_VALUES)


def test_opaque_fields_have_different_letters_and_come_back() -> None:
    assert len({field.letter for field in OPAQUE}) == len(OPAQUE)
    for field in OPAQUE:
        changed = msgspec.structs.replace(PLAIN, **{field.name: OTHER_VALUES[field.name]})
        assert unpack_extras(pack_extras(changed)) == {field.name: OTHER_VALUES[field.name]}


# --- plain jobs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OTHER_VALUES))
def test_an_envelope_with_a_field_that_fast_paths_do_not_handle_is_not_plain(name: str) -> None:
    changed = msgspec.structs.replace(PLAIN, **{name: OTHER_VALUES[name]})
    assert is_plain(PLAIN)
    assert is_plain(changed) == (name not in {*NOT_PLAIN, *(field.name for field in OPAQUE if not field.is_plain)})
