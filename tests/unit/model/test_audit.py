"""Entries of the audit log that another program has written."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from taskflow.model.audit import Act, act_record_of, pack_act

SOUND = Act(id=bytes(16), by="ada", verb="cancel", names=("a",), named=1, which={"tag": "b"}, affected=2, stopped="", reason="\ud800")


def test_a_packed_act_is_read_as_it_was() -> None:
    record = act_record_of(7, 1_000_000, pack_act(SOUND))
    assert (record.number, record.at.timestamp(), record.act.reason, record.act.which) == (7, 1.0, "\ud800", {"tag": "b"})


@pytest.mark.parametrize(
    "body",
    [None, 7, "text", b"", b"\xc1", msgpack.packb([]), msgpack.packb([1] * 8), msgpack.packb(["a"] * 8), pack_act(SOUND)[:-1]],
    ids=str,
)
def test_an_entry_that_cannot_be_read_is_listed_as_such(body: Any) -> None:
    """With a time that the calendar lacks, too."""
    record = act_record_of("one", 1 << 62, body)
    assert (record.number, record.at.timestamp(), record.act.by, record.act.verb) == (0, 0.0, "?", "?")
