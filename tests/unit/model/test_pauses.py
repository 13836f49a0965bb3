"""Pauses between tries: bounded, however often a call fails."""

from __future__ import annotations

import math

from taskflow.model.pauses import Pauses, Retries


def test_pauses_double_from_the_first_to_the_longest() -> None:
    assert [Pauses(0.1, 1.0).after(failures) for failures in range(1, 7)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_pauses_stay_at_the_longest_for_any_number_of_failures() -> None:
    """A float overflows after 1,024 doublings, which took 85 minutes of outage."""
    pauses = Pauses(0.1, 5.0)
    assert {pauses.after(failures) for failures in (7, 1_023, 1_024, 1_025, 2_000, 10**30)} == {5.0}


def test_pauses_can_be_shortened_and_not_lengthened() -> None:
    assert (Pauses(0.1, 5.0).at_most(1.0).longest, Pauses(0.1, 5.0).at_most(60.0).longest) == (1.0, 5.0)


def test_a_success_begins_again_with_the_first_pause() -> None:
    retries = Retries(Pauses(1.0, 8.0))
    assert not retries.succeeded()
    assert [retries.failed() for _ in range(3)] == [1.0, 2.0, 4.0]
    assert retries.succeeded()
    assert (retries.failures, retries.failed()) == (0, 1.0)


def test_pauses_are_spread_over_half_to_one_and_a_half_times_their_length() -> None:
    draws = iter([0.0, 0.5, math.nextafter(1.0, 0.0)])
    retries = Retries(Pauses(4.0, 4.0), lambda: next(draws))
    assert [round(retries.failed(), 6) for _ in range(3)] == [2.0, 4.0, 6.0]
