"""Wrong command lines, `--version` and `--help`."""

from __future__ import annotations

import pytest

from taskflow.cli.job_filter import FILTERS
from taskflow.cli.parser import a_parser
from tests.cli.inprocess import Cli
from tests.cli.stock import Stock


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["jobs", "not-an-id"], "'not-an-id' is not a job id"),
        (["jobs", "00000000-0000-0000-0000-000000000000", "--queue", "mail"], "ids or filters, not both: leave out --queue"),
        (["jobs", "--queue", "two words"], "--queue: queue 'two words'"),
        (["jobs", "--limit", "0"], "'0' is not a whole number, 1 or more"),
        (
            ["jobs", "--status", "done"],
            "--status 'done' is not allowed; use held, scheduled, ready, running, succeeded, failed or cancelled\n",
        ),
        (["jobs", "--status", "failedd"], "taskflow jobs: --status 'failedd' is not allowed; did you mean failed?\n"),
        (["jobs", "--ended-before", "soon"], "'soon' is not a number of seconds"),
        (["jobs", "--jsn"], "did you mean --json?"),
        (["job"], "taskflow: unknown command 'job'; did you mean jobs?\n"),
        (["xyz"], "taskflow: unknown command 'xyz'\n"),
        (["redis://:secret@host"], "taskflow: unknown command 'redis://***'\n"),
        (["completion", "fish"], "taskflow completion: shell 'fish' is not allowed; use bash or zsh\n"),
        (["queues", "mail"], "unrecognized arguments: mail"),
        ([], "COMMAND"),
        (["jobs", "--ended-before", "1e300"], "'1e300' is longer than a hundred years"),
        (["jobs", "--job", "\udcff"], "--job: job name '\\udcff': expected 1 to 200 printable characters"),
    ],
)
def test_what_is_written_wrongly_is_said_and_nothing_done(cli: Cli, arguments: list[str], complaint: str) -> None:
    said = cli(*arguments, code=2)
    assert complaint in said.err
    assert said.out == ""
    assert "Traceback" not in said.err


def _filter_flags() -> list[tuple[str, str]]:
    commands = a_parser().commands.items()
    return [
        (command, flag)
        for command, parser in commands
        for action in parser._actions
        for flag in action.option_strings
        if action.dest in FILTERS and action.nargs != 0
    ]


@pytest.mark.parametrize(("command", "flag"), [*_filter_flags(), ("jobs", "--header=")])
def test_an_empty_filter_is_wrong(cli: Cli, stock: Stock, command: str, flag: str) -> None:
    """As an unset variable of a shell leaves it. It would match every job."""
    cli.write("tasks.py", "from taskflow import job\n@job\ndef send(): pass\n")
    targets = {"check": ["tasks"]}.get(command, [])
    for value in ("", "=x") if "header" in flag else ("",):
        said = cli(command, *targets, *([flag + value] if "=" in flag else [flag, value]), code=2)
        assert flag.rstrip("=") in said.err
        assert said.out == ""
    assert [job["status"] for job in cli.jobs("--status", "cancelled")] == ["cancelled"]


def test_the_version_is_told(cli: Cli) -> None:
    assert cli("--version").out.startswith("taskflow ")


@pytest.mark.parametrize(
    "command",
    ["worker", "demo", "status", "workers", "queues", "jobs", "explain", "retry", "cancel", "purge", "pause", "resume", "schedules"],
)
def test_every_command_has_help(cli: Cli, command: str) -> None:
    assert f"usage: taskflow {command}" in cli(command, "--help").out
    listed = cli("--help").out
    assert f"    {command}" in [line[: 4 + len(command)] for line in listed.splitlines()]
    assert "124  ended by force" in listed
