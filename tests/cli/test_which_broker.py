"""Which broker a command uses: its flag's, that of `configure`, of the environment, of pyproject.toml, or a file in the current folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.inprocess import Cli

TASKS = """
from dataclasses import dataclass
from taskflow import job

@dataclass
class WelcomeEmail:
    user_id: str
    email: str

sent: list[str] = []

@job(name="send_welcome_email", max_attempts=3)
async def send_welcome_email(data: WelcomeEmail) -> None:
    sent.append(data.email)
"""


@pytest.fixture
def tasks(cli: Cli) -> Any:
    cli.write("app/tasks.py", TASKS)
    return cli.load("app.tasks")


def test_without_a_broker_it_is_a_file_in_the_current_folder(cli: Cli, tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its absolute path is reported once, so that users of two folders notice that they have two files."""
    monkeypatch.delenv("TASKFLOW_BROKER")
    tasks.send_welcome_email.delay_sync(tasks.WelcomeEmail("user_123", "a@example.com"))
    assert Path("taskflow.db").exists()
    said = cli("worker", "app.tasks", "--drain")
    assert tasks.sent == ["a@example.com"]
    assert "broker sqlite:///taskflow.db" in said.err


def test_a_flag_comes_before_configure_and_that_before_the_environment_and_that_before_the_file(cli: Cli) -> None:
    cli.write("tasks.py", "from taskflow import configure, job\nconfigure(broker='sqlite:///configured.db')\n@job\ndef work(): pass\n")
    Path("pyproject.toml").write_text('[tool.taskflow]\nbroker = "sqlite:///project.db"\n')
    assert "broker sqlite:///flag.db," in cli("worker", "tasks", "--drain", "--broker", "sqlite:///flag.db").err
    assert Path("flag.db").exists()
    assert not Path("configured.db").exists()
