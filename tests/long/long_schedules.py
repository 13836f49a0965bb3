"""Five minutes of a schedule that fires each second, on each broker, while its three workers are killed in turn."""

from __future__ import annotations

from collections.abc import Callable

from tests.cli.processes import Shell, on_each_broker
from tests.faults.firing import each_second_fires_once


@on_each_broker
def test_each_second_of_five_minutes_fires_once(shell: Shell, new_store: Callable[[], str]) -> None:
    shell.environment["TASKFLOW_BROKER"] = new_store()
    each_second_fires_once(shell, 300.0, every=3.0)
