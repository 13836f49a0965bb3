"""The settings of `taskflow worker` and `taskflow check`: in pyproject.toml and in the environment."""

from __future__ import annotations

import os
import signal

import pytest

from tests.cli.inprocess import Cli
from tests.cli.processes import Shell, ended_clearly

TASKS = """
    from taskflow import job

    @job(queue="mail")
    def send() -> None: ...
"""
PROJECT = """
    [tool.taskflow.worker]
    modules = ["app.tasks"]
    queues = ["mail=3", "default=1"]
    concurrency = 7
"""


@pytest.fixture
def project(cli: Cli) -> Cli:
    cli.write("app/tasks.py", TASKS)
    cli.write("app/other.py", TASKS)
    cli.write("pyproject.toml", PROJECT)
    return cli


def test_a_worker_takes_its_modules_queues_and_concurrency_from_pyproject(project: Cli) -> None:
    project.load("app.tasks").send.delay_sync()
    project.forget_modules()
    said = project("worker", "--drain").err
    assert "queues: mail=3, default=1; concurrency: 7" in said
    assert "modules: app.tasks; 1 job" in said
    assert project.json("queues")[0]["counts"]["succeeded"] == 1


def test_the_environment_overrides_pyproject_and_options_override_both(project: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKFLOW_WORKER_MODULES", "app.tasks, app.other")
    monkeypatch.setenv("TASKFLOW_WORKER_CONCURRENCY", "8")
    monkeypatch.setenv("TASKFLOW_WORKER_QUEUES", "")
    said = project("worker", "--drain").err
    assert "modules: app.tasks, app.other;" in said
    assert "queues: mail=3, default=1; concurrency: 8" in said
    said = project("worker", "app.tasks", "--drain", "--queues", "mail", "--concurrency", "100").err
    assert "modules: app.tasks;" in said
    assert "queues: mail; concurrency: 100" in said


def test_a_check_takes_its_modules_from_pyproject(project: Cli) -> None:
    project.load("app.tasks").send.delay_sync()
    project.forget_modules()
    assert project("check").out.splitlines()[-1] == "all 1 jobs would run with this code"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            'module = ["a"]',
            "[tool.taskflow.worker] in FOLDER/pyproject.toml has an unknown setting 'module'; settings are modules, queues, ",
        ),
        ("modules = 5", "modules in [tool.taskflow.worker] of FOLDER/pyproject.toml is 5: expected text or a list of texts"),
        ('modules = ["a", 5]', "is ['a', 5]: expected text or a list of texts"),
        ("modules = []", "is []: expected text or a list of texts"),
        (
            "concurrency = true",
            "concurrency in [tool.taskflow.worker] of FOLDER/pyproject.toml is True: expected a whole number, 1 or more",
        ),
        ("processes = 0", "is 0: expected a whole number, 1 or more"),
        ("processes = 1001", "is 1001: expected at most 1000, because more would fill the machine"),
        ('modules = "app.tasks"\nqueues = "two words"', "queues in [tool.taskflow.worker] of FOLDER/pyproject.toml: queue 'two words'"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(project: Cli, settings: str, complaint: str) -> None:
    project.write("pyproject.toml", f"[tool.taskflow.worker]\n{settings}")
    assert complaint.replace("FOLDER", os.path.realpath(project.folder)) in project("worker", code=2).err
    assert project("queues", "--broker", "memory://").err == "", "other commands do not read these settings"


def test_a_wrong_variable_and_a_table_that_is_none_are_named(project: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write("pyproject.toml", "[tool.taskflow]\nworker = 5")
    assert "[tool.taskflow.worker] must be a table, got 5" in project("worker", code=2).err
    project.write("pyproject.toml", "")
    monkeypatch.setenv("TASKFLOW_WORKER_PORT", "tcp://10.0.0.1:80")  # as Kubernetes sets it for a service of this name
    monkeypatch.setenv("TASKFLOW_WORKER_PROCESSES", "many")
    assert project("worker", "app.tasks", code=2).err == (
        "taskflow: TASKFLOW_WORKER_PROCESSES is 'many': expected a whole number, 1 or more\n"
    )


def test_without_modules_anywhere_the_command_says_where_to_name_them(cli: Cli) -> None:
    for command in ("worker", "check"):
        said = cli(command, code=2).err
        assert f"taskflow {command}: name the modules that declare jobs, as in `taskflow {command} app.tasks`, or set modules in" in said


def test_a_number_of_processes_starts_a_supervisor_which_keeps_it(shell: Shell) -> None:
    """Also for a worker that takes another one's place after the setting is gone."""
    shell.write("tasks.py", TASKS)
    shell.write("pyproject.toml", '[tool.taskflow.worker]\nmodules = ["tasks"]\nprocesses = 2\n')
    supervisor = shell.taskflow("worker")
    supervisor.wait_for("working as", times=2)
    shell.write("pyproject.toml", '[tool.taskflow.worker]\nmodules = ["tasks"]\n')
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_for("working as", times=4)
    supervisor.signal(signal.SIGTERM)
    ended_clearly(supervisor, [0])
