"""Limits under many kills: see tests/faults/test_limits.py. TASKFLOW_LIMITED_RUNS is the number of jobs on each store."""

from __future__ import annotations

import os

import pytest

from tests.cli.processes import Shell
from tests.faults.limited import run_under_kills

JOBS = int(os.environ.get("TASKFLOW_LIMITED_RUNS", "500000"))


@pytest.mark.parametrize("new_store", ["redis", "postgres"], indirect=True)
def test_no_more_runs_than_a_limit_allows_while_workers_are_killed(shell: Shell) -> None:
    """With 500,000 jobs on each store, about a hundred workers are killed."""
    judged = run_under_kills(shell, JOBS, kills=JOBS // 5_000)
    print(judged)
    assert (judged.jobs, judged.over) == (JOBS, 0)
