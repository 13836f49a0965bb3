"""Bad input leads to a clear end with the exit code of the table, in the user's own terms, and without a traceback of ours."""

from __future__ import annotations

import pytest

from tests.cli.inprocess import Cli, Said

A_JOB = "from taskflow import job\n@job(queue='mail')\ndef send(): pass\n"


def refused(cli: Cli, *argv: str, code: int = 2) -> Said:
    """Assert that the command fails without frames of ours, and without having begun to work."""
    said = cli(*argv, code=code)
    assert "taskflow/" not in said.err
    assert "importlib" not in said.err
    assert "working as" not in said.err
    assert said.out == ""
    return said


# --- targets -------------------------------------------------------------------------------------------------------------


def test_a_module_that_raises_shows_where(cli: Cli) -> None:
    cli.write("app/settings.py", "def read():\n    return {}['DATABASE']\n")
    cli.write("app/tasks.py", "from app.settings import read\n\nDATABASE = read()\n")
    said = refused(cli, "worker", "app.tasks")
    traceback, last = said.err.strip().rsplit("\n", 1)
    assert traceback.splitlines()[0] == "Traceback (most recent call last):"
    assert f'File "{cli.folder}/app/tasks.py", line 3' in traceback
    assert f'File "{cli.folder}/app/settings.py", line 2' in traceback
    assert traceback.splitlines()[-1].strip() == "KeyError: 'DATABASE'"
    assert last == "taskflow: app.tasks cannot be imported: KeyError: 'DATABASE'"


def test_a_module_that_lacks_what_it_imports_is_not_called_missing(cli: Cli) -> None:
    cli.write("tasks.py", "import nowhere_to_be_found\n")
    said = refused(cli, "worker", "tasks")
    assert "No module named 'nowhere_to_be_found'" in said.err
    assert f'File "{cli.folder}/tasks.py", line 1' in said.err
    assert "found no module" not in said.err


def test_a_wrong_declaration_shows_the_users_line(cli: Cli) -> None:
    """The error is ours; the frames are not shown."""
    cli.write("tasks.py", "from taskflow import job\n\n@job(max_atempts=3)\ndef send(): pass\n")
    said = refused(cli, "worker", "tasks")
    assert f'File "{cli.folder}/tasks.py", line 3' in said.err
    assert "did you mean max_attempts=?" in said.err


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("app.taks", "did you mean app.tasks?"),
        ("ap.tasks", "did you mean app.tasks?"),
        ("app.tasks.send", "did you mean app.tasks?"),
        ("app.tasks:send", "did you mean app.tasks?"),
        ("app/tasks.py", "write the module's name with dots: app.tasks"),
        ("./app/tasks.py", "write the module's name with dots: app.tasks"),
        ("tasks.py", "write the module's name with dots: tasks"),
        ("something.else.entirely", "looked in "),
    ],
)
def test_a_target_whose_name_is_nearly_right_is_suggested(cli: Cli, target: str, hint: str) -> None:
    cli.write("app/tasks.py", A_JOB)
    said = refused(cli, "worker", target)
    assert said.err.startswith(f"taskflow: found no module '{target}'; {hint}")
    assert said.err.count("\n") == 1


def test_a_target_without_jobs_is_refused(cli: Cli) -> None:
    cli.write("tasks.py", "def forgotten(): pass\n")
    assert refused(cli, "worker", "tasks").err == "taskflow: no jobs in tasks: decorate a function with @job\n"


def test_the_error_for_a_package_without_jobs_names_its_submodules(cli: Cli) -> None:
    cli.write("app/tasks.py", A_JOB)
    assert "app is a package: name its modules, or add --all-submodules" in refused(cli, "worker", "app").err


def test_a_submodule_that_does_not_import_is_named(cli: Cli) -> None:
    cli.write("app/tasks.py", A_JOB)
    cli.write("app/deep/__init__.py", "1 / 0\n")
    said = refused(cli, "worker", "app", "--all-submodules")
    assert f'File "{cli.folder}/app/deep/__init__.py", line 1' in said.err
    assert "taskflow: app.deep cannot be imported: ZeroDivisionError" in said.err


# --- flags ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--concurency", "3"], "did you mean --concurrency?"),
        (["--conc", "3"], "unrecognized arguments: --conc 3"),
        (["--pan"], "unrecognized arguments: --pan\n"),  # not --plan, a flag of `migrate`
        (["--concurrency", "0"], "'0' is not a whole number, 1 or more"),
        (["--concurrency", "1000000"], "expected an int from 1 to 100,000"),
        (["--concurrency", "many"], "'many' is not a whole number"),
        (["--grace", "-1"], "'-1'"),
        (["--grace", "nan"], "'nan' is not a number of seconds (0 or more)"),
        (["--drain-horizon", "inf"], "'inf' is not a number of seconds"),
        (["--drain-horizon", "1e17"], "'1e17' is longer than a hundred years"),
        (["--ttl", "0.5"], "'0.5' is too short"),
        (["--queues", "a=3,b"], "--queues: queues a, b: give every queue a weight (a=3,b=1), or no queue"),
        (["--queues", "a=0"], "queue 'a' has the weight '0'"),
        (["--queues", "a,a"], "queue 'a' is named twice"),
        (["--queues", "a b"], "queue 'a b'"),
        (["--queues", ""], "queue ''"),
        (["--queues", "a,"], "queue ''"),
        (["--log-level", "loud"], "--log-level 'loud' is not allowed; use debug, info, warning or error\n"),
        (["--log-format", "xml"], "--log-format 'xml' is not allowed; use text or json\n"),
    ],
)
def test_a_flag_that_is_wrong_is_named(cli: Cli, flags: list[str], complaint: str) -> None:
    cli.write("tasks.py", A_JOB)
    assert complaint in cli("worker", "tasks", *flags, code=2).err


# --- brokers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["status"], ["retry", "--all"], ["pause", "mail"], ["worker", "tasks"]])
@pytest.mark.parametrize(
    ("url", "complaint"), [("sqlit:///queue.db", "did you mean sqlite://?"), ("redis://app:hunter2@[h", "has a malformed host")]
)
def test_a_malformed_url_is_a_usage_error(cli: Cli, command: list[str], url: str, complaint: str) -> None:
    cli.write("tasks.py", A_JOB)
    said = cli(*command, "--broker", url, code=2)
    assert complaint in said.err
    assert "hunter2" not in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("command", [["status"], ["jobs", "--json"], ["cancel", "--all"], ["resume", "mail"], ["worker", "tasks"]])
def test_a_broker_that_cannot_be_reached_is_3(cli: Cli, command: list[str]) -> None:
    cli.write("tasks.py", A_JOB)
    said = cli(*command, "--broker", "sqlite:///no/such/folder/queue.db", code=3)
    assert said.err.splitlines()[-1].startswith(f"taskflow: {cli.folder}/no/such/folder/queue.db: its folder ")
    assert "Traceback" not in said.err
