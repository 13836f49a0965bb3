"""A broker URL's password: neither any output shows it, nor the command line of a process that taskflow starts."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from taskflow.cli.startup import command_of
from tests.cli.hostile import HostileBroker
from tests.cli.inprocess import Cli
from tests.cli.processes import Shell, ended_clearly, until
from tests.support.processes import children_of

SECRET = "hunter2"

TASKS = """
from pathlib import Path
from taskflow import job

@job
def note_environment() -> None:
    import os
    Path("environment").write_text(str(dict(os.environ)))
"""


REFUSED = [f"redis://:{SECRET}@127.0.0.1:1\n", f"redis://:{SECRET}\n@127.0.0.1:1", f"//u:{SECRET}@h"]
AWAY = [f"redis://{SECRET}@127.0.0.1:1", f"redis://:{SECRET}@127.0.0.1:1"]


@pytest.mark.parametrize("command", ["status", "status --json", "doctor", "queues", "jobs", "migrate", "worker tasks"])
@pytest.mark.parametrize("url", REFUSED)
def test_a_refused_url_is_not_repeated(cli: Cli, command: str, url: str) -> None:
    cli.write("tasks.py", TASKS)
    said = cli(*command.split(), "--broker", url, code=2)
    assert SECRET not in said.out + said.err


@pytest.mark.parametrize("command", ["status", "status --json", "doctor", "queues", "jobs"])
@pytest.mark.parametrize("url", AWAY)
def test_a_broker_that_is_away_is_named_without_its_password(cli: Cli, command: str, url: str) -> None:
    said = cli(*command.split(), "--broker", url, code=3)
    assert SECRET not in said.out + said.err


@pytest.mark.parametrize("command", ["status", "status --json", "doctor", "doctor --json"])
def test_a_broker_that_answers_is_shown_without_its_password(cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr("taskflow.app.app.connect", lambda url: HostileBroker())
    for shown, url in (("redis://me:***@host", f"redis://me:{SECRET}@host"), ("redis://***@host", f"redis://{SECRET}@host")):
        said = cli(*command.split(), "--broker", url, code=1 if "doctor" in command else 0)
        assert shown in said.out
        assert SECRET not in said.out + said.err


def test_an_url_in_the_wrong_place_is_not_repeated(cli: Cli) -> None:
    said = cli("status", f"redis://:{SECRET}@host", code=2)
    assert SECRET not in said.err
    assert "redis://***" not in said.out


def test_workers_have_no_broker_on_their_command_lines(shell: Shell) -> None:
    """The supervisor's command line is the user's. The worker uses the broker all the same, and no job's process inherits the variable."""
    shell.write("tasks.py", TASKS)
    broker = f"sqlite:///queue.db?namespace={SECRET}"
    shell.environment["TASKFLOW_BROKER"] = broker
    shell.send("note_environment.bind()")
    shell.environment["TASKFLOW_BROKER"] = "memory://"
    worker = shell.worker("--processes", "1", "--broker", broker)
    [pid] = children_of(worker.process.pid)
    assert SECRET in command_line(worker.process.pid)
    assert SECRET not in command_line(pid)
    until((shell.folder / "environment").exists, worker)
    until(lambda: bool((shell.folder / "environment").read_text()), worker)
    assert SECRET not in (shell.folder / "environment").read_text()
    worker.signal(signal.SIGTERM)
    ended_clearly(worker, [0])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("worker a --broker x --drain", "worker a --drain"),
        ("worker --broker=x a", "worker a"),
        ("worker --broker x --broker=y a -- --broker", "worker a -- --broker"),
        ("worker a", "worker a"),
    ],
)
def test_a_command_line_is_repeated_without_its_broker(given: str, kept: str) -> None:
    assert command_of(given.split()) == [sys.executable, "-m", "taskflow", *kept.split()]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()
