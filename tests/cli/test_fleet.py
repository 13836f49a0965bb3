"""Probes and systemd ask a supervisor how its workers are."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from taskflow.cli import health
from taskflow.cli.health import Fleet, report_line
from taskflow.worker.children.syscalls import ExitStatus
from taskflow.worker.health import HealthCheck
from tests.cli.probes import ask, ask_until
from tests.cli.processes import TIMEOUT, Running, Shell, ended_clearly
from tests.cli.systemd import FakeSystemd

TASKS = """
import time
from pathlib import Path
from taskflow import job

@job
async def block() -> None:
    print("begun", flush=True)
    while not Path("release").exists():
        time.sleep(0.005)
"""

WELL = HealthCheck(True, "fine")
UNWELL = HealthCheck(False, "it stands still")


def supervised(shell: Shell, processes: int, *arguments: str) -> tuple[Running, int]:
    """At work, and the port that it answers at."""
    shell.write("tasks.py", TASKS)
    started = shell.taskflow("worker", "tasks", "--processes", str(processes), "--health-port", "0", *arguments)
    started.wait_for("working as", times=processes)
    found = re.search(r"health: http://127\.0\.0\.1:(\d+)/live and /ready", started.said)
    assert found, started.said
    return started, int(found[1])


def test_a_supervisor_answers_for_its_workers(shell: Shell) -> None:
    """At one port, whoever of them comes and goes."""
    started, port = supervised(shell, 2)
    give_up_at = time.monotonic() + TIMEOUT
    while (told := ask(port, "/ready")).body.get("ready") != 2:
        assert time.monotonic() < give_up_at, told
        time.sleep(0.1)
    assert told.status == 200
    assert ask(port, "/live").body["workers"] == 2
    started.signal(signal.SIGHUP)
    started.wait_for("all workers have been replaced")
    ask_until(port, "/ready", 200)
    started.signal(signal.SIGTERM)
    ended_clearly(started, [0])


def test_systemd_hears_of_the_supervisor_alone(shell: Shell, tmp_path: Path) -> None:
    systemd = FakeSystemd(str(tmp_path / "notify"))
    with systemd.socket:
        shell.environment |= {**systemd.environment, "WATCHDOG_USEC": "2000000"}
        started, _ = supervised(shell, 2)
        systemd.wait_for("READY=1")
        systemd.wait_for("WATCHDOG=1")
        started.signal(signal.SIGTERM)
        systemd.wait_for("STOPPING=1")
        ended_clearly(started, [0])
        while systemd.hear(0.2):
            pass
    assert systemd.lines.count("READY=1") == systemd.lines.count("STOPPING=1") == 1


def test_one_worker_that_works_is_enough() -> None:
    workers = Fleet()
    assert (workers.live().is_well, workers.ready().is_well) == (True, False)
    workers.note(1, report_line(UNWELL, UNWELL))
    assert (workers.live().is_well, workers.ready().why) == (False, "no worker is ready: it stands still")
    workers.note(2, report_line(WELL, UNWELL))
    assert (workers.live().is_well, workers.ready().is_well) == (True, False)
    workers.note(2, report_line(WELL, WELL))
    assert (workers.live().is_well, workers.ready().is_well) == (True, True)
    assert workers.ready().facts == {"workers": 2, "live": 1, "ready": 1}
    workers.note(2, ExitStatus(-9))
    assert not workers.live().is_well


def test_a_worker_that_has_fallen_silent_does_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Fleet()
    workers.note(1, report_line(WELL, WELL))
    monkeypatch.setattr(health, "SILENCE_TIMEOUT", 0.0)
    assert "has been silent for" in workers.live().why
    assert not workers.ready().is_well


@pytest.mark.parametrize("line", ["", "health", "health 1 1", "loaded", "ended 0", "health! 1 1 fine"])
def test_other_lines_say_nothing_of_it(line: str) -> None:
    workers = Fleet()
    workers.note(1, line)
    assert workers.ready().facts["workers"] == 0
