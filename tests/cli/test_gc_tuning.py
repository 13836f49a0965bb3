"""Python's collector of cycles leaves alone what a worker's start has made, and is as it was for what comes after."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from taskflow.cli.startup import Collector
from tests.cli.inprocess import Cli

TASKS = """
import gc
from taskflow import job

while_loading = gc.get_threshold()
told = []

@job
def tell() -> None:
    told.append((gc.get_threshold(), gc.get_freeze_count() > 10_000))
"""


def test_a_worker_is_collected_seldom_while_it_loads_and_as_ever_while_it_works(cli: Cli) -> None:
    before = gc.get_threshold()
    cli.write("tasks.py", TASKS)
    tasks: Any = cli.load("tasks")
    tasks.tell.delay_sync()
    cli("worker", "tasks", "--drain")
    assert tasks.told == [(before, True)]
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0), "whoever has called it goes on as before"


@pytest.mark.parametrize("threshold", [(9_999, 9, 9), (50_000, 500, 1_000)])
def test_what_the_application_has_set_stays(threshold: tuple[int, int, int]) -> None:
    before = gc.get_threshold()
    try:
        with Collector() as collector:
            gc.set_threshold(*threshold)
            has_set = gc.get_threshold()  # newer versions of Python leave out the last
            collector.settle()
            assert gc.get_threshold() == has_set
        assert gc.get_threshold() == has_set
    finally:
        gc.set_threshold(*before)
