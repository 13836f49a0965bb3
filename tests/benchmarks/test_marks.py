"""Jobs write down that they ran, and whoever asks learns whether each ran exactly once."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.marks import environment_of, marks_of

ROOT = Path(__file__).parents[2]


def test_all_jobs_that_ran_once_pass_the_check() -> None:
    with marks_of(16) as marks:
        for number in range(16):
            marks.mark(number)

        assert marks.ran == 16
        marks.check()


def test_a_job_that_did_not_run_is_found() -> None:
    with marks_of(8) as marks:
        for number in range(7):
            marks.mark(number)

        assert marks.ran == 7
        with pytest.raises(AssertionError, match="1 of 8 jobs have not run"):
            marks.check()


def test_a_job_that_ran_twice_is_found() -> None:
    with marks_of(8) as marks:
        for number in [*range(8), 3]:
            marks.mark(number)

        with pytest.raises(AssertionError, match="1 of 8 jobs have run more than once"):
            marks.check()


def test_threads_and_other_processes_write_to_the_same_marks() -> None:
    with marks_of(64) as marks:

        def mark_some(start: int) -> None:
            for number in range(start, 32, 4):
                marks.mark(number)

        threads = [threading.Thread(target=mark_some, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        program = "from benchmarks.marks import mark\nfor i in range(32, 64): mark(i)"
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment_of(marks), check=True)

        marks.check()
        assert all(marks.stamps())
