"""Contenders are measured in turn, and rows tell medians of what they gave."""

from __future__ import annotations

import pytest

from benchmarks.fleet import efficiencies
from benchmarks.report import BARE, OURS, Contender, ContenderFailed, Row, a_pair, figure_text, in_turn, of_lags, of_latencies


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


def test_a_contender_may_be_measured_less_often() -> None:
    seen: list[int] = []

    def once() -> dict[str, float]:
        seen.append(1)
        return {"jobs/s": 1.0}

    in_turn("drain", 3, lambda: {"jobs/s": 1.0}, None, [Contender("slow", once, repeats=1)])

    assert len(seen) == 1


def test_a_figure_that_only_some_contenders_have_is_a_row_without_the_others() -> None:
    rows = in_turn("drain", 1, lambda: {"jobs/s": 2.0, "scripts/job": 0.02}, lambda: {"jobs/s": 4.0})

    assert [(row.figure, row.bare) for row in rows] == [("jobs/s", 4.0), ("scripts/job", None)]


def test_a_pair_is_a_row_of_one_figure() -> None:
    row = a_pair("verbs", 2, lambda: 3.0, lambda: 6.0, figure="jobs/s")

    assert row == Row("verbs", "verbs", "jobs/s", {OURS: [3.0, 3.0], BARE: [6.0, 6.0]})


def test_latencies_are_told_in_milliseconds() -> None:
    told = of_latencies([0.001] * 98 + [0.004, 0.004])

    assert told["p50 ms"] == pytest.approx(1.0)
    assert told["p99 ms"] == pytest.approx(4.0)


def test_what_began_before_its_time_is_counted() -> None:
    told = of_lags([0.002, -0.5, 0.003, -1e-5])

    assert told["early"] == 1
    assert told["max ms"] == pytest.approx(3.0)


def test_efficiency_is_the_rate_by_as_many_times_one_workers() -> None:
    rows = [Row(workers, "", "jobs/s", {OURS: [rate]}) for workers, rate in (("1", 100.0), ("2", 160.0), ("4", 200.0))]

    assert [(row.figure, row.ours) for row in efficiencies(rows)] == [("1 processes", 1.0), ("2 processes", 0.8), ("4 processes", 0.5)]


@pytest.mark.parametrize(
    ("value", "shown"), [(14845.2, "14,845"), (42.42, "42.4"), (3.456, "3.46"), (0.0368, "0.037"), (0.0, "0"), (-250.4, "-250")]
)
def test_a_figure_has_as_many_digits_as_its_size_wants(value: float, shown: str) -> None:
    assert figure_text(value) == shown
