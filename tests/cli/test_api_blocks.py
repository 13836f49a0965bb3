"""The blocks of the public face about brokers (5), work (6) and tests (10), as written there. The lifespan's is tests/example."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cli.inprocess import Cli
from tests.cli.processes import Shell, ended_clearly

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


# --- 5. brokers ----------------------------------------------------------------------------------------------------------


def test_without_a_broker_it_is_a_file_in_the_current_folder(cli: Cli, tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose absolute path is told once, so that two folders are seen to have two files."""
    monkeypatch.delenv("TASKFLOW_BROKER")
    tasks.send_welcome_email.delay_sync(tasks.WelcomeEmail("user_123", "a@example.com"))
    assert Path("taskflow.db").exists()
    said = cli("worker", "app.tasks", "--drain")
    assert tasks.sent == ["a@example.com"]
    assert "broker sqlite:///taskflow.db" in said.err


def test_the_default_is_told_with_its_absolute_path(shell: Shell) -> None:
    del shell.environment["TASKFLOW_BROKER"]
    said = shell.run("-m", "taskflow", "pause", "mail")
    assert said.count(f"no broker is configured: using the SQLite file {shell.folder}/taskflow.db") == 1


def test_a_flag_comes_before_configure_and_that_before_the_environment_and_that_before_the_file(cli: Cli) -> None:
    cli.write("tasks.py", "from taskflow import configure, job\nconfigure(broker='sqlite:///configured.db')\n@job\ndef work(): pass\n")
    Path("pyproject.toml").write_text('[tool.taskflow]\nbroker = "sqlite:///project.db"\n')
    assert "broker sqlite:///flag.db," in cli("worker", "tasks", "--drain", "--broker", "sqlite:///flag.db").err
    assert Path("flag.db").exists()
    assert not Path("configured.db").exists()


def test_configure_comes_before_the_environment(cli: Cli) -> None:
    cli.write("tasks.py", "from taskflow import configure, job\nconfigure(broker='sqlite:///configured.db')\n@job\ndef work(): pass\n")
    assert "broker sqlite:///configured.db," in cli("worker", "tasks", "--drain").err


def test_the_environment_comes_before_the_project(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pyproject.toml").write_text('[tool.taskflow]\nbroker = "sqlite:///project.db"\n')
    cli("pause", "mail")
    assert cli.json("status")["broker"] == "sqlite:///queue.db"
    monkeypatch.delenv("TASKFLOW_BROKER")
    cli("pause", "mail", "--broker", "sqlite:///flag.db")
    assert cli.json("status", "--broker", "sqlite:///flag.db")["broker"] == "sqlite:///flag.db"


def test_the_project_comes_before_the_default(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pyproject.toml").write_text('[tool.taskflow]\nbroker = "sqlite:///project.db"\n')
    monkeypatch.delenv("TASKFLOW_BROKER")
    cli("pause", "mail")
    assert cli.json("status")["broker"] == "sqlite:///project.db"


def test_memory_is_a_broker_for_one_process(cli: Cli, tasks: Any) -> None:
    from taskflow import Worker, configure

    async def within_one_process() -> None:
        configure(broker="memory://")
        handle = await tasks.send_welcome_email.delay(tasks.WelcomeEmail("user_123", "a@example.com"))
        async with Worker():
            await handle.result(10)

    asyncio.run(within_one_process())
    assert tasks.sent == ["a@example.com"]


def test_a_relative_file_and_an_absolute_one(cli: Cli, tmp_path: Path) -> None:
    cli("pause", "mail", "--broker", "sqlite:///relative.db")
    assert Path("relative.db").exists()
    cli("pause", "mail", "--broker", f"sqlite:///{tmp_path}/absolute.db")
    assert (tmp_path / "absolute.db").exists()


def test_two_namespaces_share_a_file(cli: Cli, tasks: Any) -> None:
    tasks.send_welcome_email.delay_sync(tasks.WelcomeEmail("user_123", "a@example.com"))
    cli("migrate", "--broker", "sqlite:///queue.db?namespace=other")
    assert cli.json("queues", "--broker", "sqlite:///queue.db?namespace=other") == []
    assert len(cli.json("queues", "--broker", "sqlite:///queue.db?namespace=taskflow")) == 1


# --- 6. work -------------------------------------------------------------------------------------------------------------


def test_a_worker_in_another_process_works_what_comes_until_it_is_told_to_stop(shell: Shell) -> None:
    """`taskflow worker app.tasks`"""
    shell.write("app/tasks.py", TASKS)
    worker = shell.taskflow("worker", "app.tasks")
    worker.wait_for("working as")
    shell.run("-c", "from app.tasks import *; send_welcome_email.delay_sync(WelcomeEmail('user_123', 'a@example.com'))")
    worker.wait_for("send_welcome_email .* succeeded")
    worker.signal(signal.SIGTERM)
    ended_clearly(worker, [0])


def test_weights_and_concurrency_as_written(cli: Cli, tasks: Any) -> None:
    """`taskflow worker app.tasks --queues mail=3,default=1 --concurrency 200`"""
    for queue in ("mail", "default"):
        tasks.send_welcome_email.options(queue=queue).delay_sync(tasks.WelcomeEmail("user_123", queue))
    said = cli("worker", "app.tasks", "--queues", "mail=3,default=1", "--concurrency", "200", "--drain")
    assert sorted(tasks.sent) == ["default", "mail"]
    assert "queues: mail=3, default=1; concurrency: 200" in said.err


def test_several_processes_reloaded_as_written(shell: Shell) -> None:
    """`taskflow worker app.tasks --queues mail=3,default=1 --concurrency 200 --processes 4 --reload`"""
    pytest.importorskip("watchfiles")
    shell.write("app/tasks.py", TASKS)
    flags = "--queues mail=3,default=1 --concurrency 200 --processes 4 --reload"
    worker = shell.taskflow("worker", "app.tasks", *flags.split())
    worker.wait_for("working as", times=4)
    shell.run("-c", "from app.tasks import *; send_welcome_email.delay_sync(WelcomeEmail('user_123', 'a@example.com'))")
    worker.wait_for("send_welcome_email .* succeeded")
    worker.signal(signal.SIGTERM)
    ended_clearly(worker, [0])


def test_a_worker_inside_an_application_works_until_its_block_ends(cli: Cli, tasks: Any) -> None:
    from taskflow import Worker

    async def serve() -> None:
        await (await tasks.send_welcome_email.delay(tasks.WelcomeEmail("user_123", "a@example.com"))).result(10)

    async def application() -> None:
        async with Worker(concurrency=50):
            await serve()
        await tasks.send_welcome_email.delay(tasks.WelcomeEmail("user_456", "b@example.com"))

    asyncio.run(application())
    assert tasks.sent == ["a@example.com"]
    assert cli.json("queues")[0]["counts"]["ready"] == 1


# --- 10. test ------------------------------------------------------------------------------------------------------------

TEST = """
from app.tasks import WelcomeEmail, send_welcome_email
from taskflow import TaskflowJobs

async def signup(email: str) -> None:
    await send_welcome_email.options(after=3600).delay(WelcomeEmail("user_123", email))

async def test_signup(taskflow_jobs: TaskflowJobs) -> None:
    await signup("a@example.com")
    taskflow_jobs.assert_enqueued(send_welcome_email, WelcomeEmail("user_123", "a@example.com"))
    await taskflow_jobs.run_all()
    await taskflow_jobs.advance(days=3)
    taskflow_jobs.assert_not_enqueued(send_welcome_email)
"""


def test_the_plugin_serves_a_users_own_tests(shell: Shell) -> None:
    """In a project of their own, without a word of configuration but pytest-asyncio's mode; the broker that is set is not touched."""
    shell.write("app/tasks.py", TASKS)
    shell.write("test_signup.py", TEST)
    said = shell.run("-m", "pytest", "-q", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider", "--rootdir", ".", "test_signup.py")
    assert "1 passed" in said
    assert not (shell.folder / "queue.db").exists()
