"""What probes are told while the broker is away, really away: LATE seconds pass until a worker says so."""

from __future__ import annotations

import signal

import pytest

from tests.cli.probes import a_worker, ask, ask_until
from tests.cli.processes import Shell, ended_clearly
from tests.support.outages import Outage, outages


@pytest.mark.parametrize("kind", outages(), ids=lambda kind: kind.name)
def test_a_worker_whose_broker_is_away_lives_and_is_not_ready(shell: Shell, kind: type[Outage]) -> None:
    with kind() as broker:
        shell.environment["TASKFLOW_BROKER"] = broker.url
        worker, port = a_worker(shell)
        ask_until(port, "/ready", 200)
        broker.go_away()
        unready = ask_until(port, "/ready", 503)
        assert "the broker has not answered" in unready.body["why"]
        assert ask(port, "/live").status == 200
        broker.come_back()
        ask_until(port, "/ready", 200)
        worker.signal(signal.SIGTERM)
        ended_clearly(worker, [0])
