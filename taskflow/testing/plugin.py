"""The pytest plugin that provides the fixture `taskflow_jobs`. Loading it imports no other part of taskflow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from taskflow.testing.jobs import TaskflowJobs


def pytest_configure(config: pytest.Config) -> None:
    """Warn if OpenStack's TaskFlow is installed in the same folder as this package, because
    `from taskflow import job` may then fail during test collection."""
    if (Path(__file__).parents[1] / "engines").exists():
        from taskflow.app.package_conflict import advice_if_mixed

        if (advice := advice_if_mixed()) is not None:
            config.issue_config_time_warning(UserWarning(advice), stacklevel=2)


@pytest.fixture
def taskflow_jobs() -> Iterator[TaskflowJobs]:
    """Keep jobs in memory, under a clock that the test controls. Settings that the test changes are restored afterwards."""
    from taskflow.testing.jobs import jobs_in_memory

    with jobs_in_memory() as jobs:
        yield jobs
