"""The pytest plugin: the fixture `taskflow_jobs`. Loads nothing of taskflow before a test asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from taskflow.testing.jobs import TaskflowJobs


@pytest.fixture
def taskflow_jobs() -> Iterator[TaskflowJobs]:
    """Jobs go to memory, under a clock that the test moves; what it configures is undone after."""
    from taskflow.testing.jobs import jobs_in_memory

    with jobs_in_memory() as jobs:
        yield jobs
