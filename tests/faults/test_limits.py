"""Limits while workers are killed."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.cli.processes import Shell, on_each_broker
from tests.faults.limited import Judged, judge, run_under_kills


def test_the_judge_sees_an_overlap() -> None:
    """It counts the runs at once, of each key apart. The end and the kill of a run make room for another one."""
    begun = [f"begin 1 one {key} {key}" for key in range(3)]
    again = ["begin 2 one 0 7", "end 1 one 1 1", "begin 2 one 1 8", "killed 2", "begin 3 one 1 9"]
    assert judge(begun) == Judged(3, 3, 0, Counter(one=1))
    assert judge([*begun, *again]) == Judged(6, 6, 1, Counter(one=2))


@on_each_broker
@pytest.mark.unmeasured
def test_no_more_runs_than_a_limit_allows_while_workers_are_killed(shell: Shell) -> None:
    judged = run_under_kills(shell, 1_500, kills=2)
    assert (judged.jobs, judged.over) == (1_500, 0)
    assert judged.runs < 1_600
