"""Contenders are measured in turn, and rows tell medians of what they gave."""

from __future__ import annotations

import pytest

from benchmarks.report import BARE, OURS, Contender, ContenderFailed, in_turn


def test_contenders_take_turns_and_their_medians_are_told() -> None:
    said: list[str] = []

    def measure(name: str, values: list[float]):  # type: ignore[no-untyped-def]
        def once() -> dict[str, float]:
            said.append(name)
            return {"jobs/s": values.pop(0)}

        return once

    peers = [Contender("peer", measure("peer", [1.0, 2.0, 9.0]))]
    [row] = in_turn("drain", 3, measure(OURS, [10.0, 40.0, 20.0]), measure(BARE, [80.0, 40.0, 30.0]), peers)

    assert said == [OURS, BARE, "peer"] * 3
    assert (row.ours, row.least, row.most) == (20.0, 10.0, 40.0)
    assert row.bare == 40.0
    assert row.ratio == 0.5
    assert row.median("peer") == 2.0
    assert row.peers == ["peer"]


def test_a_peer_that_fails_is_told_as_such_and_not_tried_again() -> None:
    tried: list[str] = []

    def hang() -> dict[str, float]:
        tried.append("hung")
        raise ContenderFailed("its worker began no job within 30 s")

    rows = in_turn("drain", 3, lambda: {"jobs/s": 1.0, "CPU": 2.0}, None, [Contender("hung", hang)])

    assert tried == ["hung"]
    assert [row.figure for row in rows] == ["jobs/s", "CPU"]
    assert all(row.failures == {"hung": "its worker began no job within 30 s"} for row in rows)
    assert all(row.peers == [] for row in rows)


def test_a_failure_after_a_success_takes_the_peer_out_of_the_row() -> None:
    """A median of the runs that went well would hide the one that did not."""
    outcomes = [{"jobs/s": 5.0}]

    def once() -> dict[str, float]:
        if not outcomes:
            raise ContenderFailed("it lost jobs")
        return outcomes.pop()

    [row] = in_turn("drain", 2, lambda: {"jobs/s": 1.0}, None, [Contender("fickle", once)])

    assert row.peers == []
    assert row.failures == {"fickle": "it lost jobs"}


def test_ours_failing_is_an_error() -> None:
    def fail() -> dict[str, float]:
        raise AssertionError("19,999 of 20,000 jobs were run")

    with pytest.raises(AssertionError, match="19,999"):
        in_turn("drain", 1, fail)
