"""Wrong command lines, `--version` and `--help`."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from taskflow.cli.command import FILTERS
from taskflow.cli.parser import GROUPS, a_parser
from tests.cli.inprocess import Cli
from tests.cli.stock import Stock

REFERENCE: Final = Path(__file__).parents[2] / "docs/reference"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["jobs", "not-an-id"], "'not-an-id' is not a job id"),
        (["jobs", "00000000-0000-0000-0000-000000000000", "--queue", "mail"], "ids or filters, not both: leave out --queue"),
        (["jobs", "--queue", "two words"], "--queue: queue 'two words'"),
        (["jobs", "--limit", "9" * 5_000], "9... is more than the maximum of 1000000000000"),
        (["jobs", "--limit", "\u0663"], "is not a whole number, 1 or more"),
        (["dashboard", "--port", "9" * 5_000], "9... is not a port number from 0 to 65535"),
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
def test_wrong_arguments_are_reported_and_nothing_is_done(cli: Cli, arguments: list[str], complaint: str) -> None:
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
    """An unset variable of a shell leads to one. It would match every job."""
    cli.write("tasks.py", "from taskflow import job\n@job\ndef send(): pass\n")
    targets = {"check": ["tasks"], "send": ["tasks.send"]}.get(command, [])
    for value in ("", "=x") if "header" in flag else ("",):
        said = cli(command, *targets, *([flag + value] if "=" in flag else [flag, value]), code=2)
        assert flag.rstrip("=") in said.err
        assert said.out == ""
    assert [job["status"] for job in cli.jobs("--status", "cancelled")] == ["cancelled"]


def helps() -> Iterator[tuple[str, ...]]:
    """Yield the words of every command, and of every action."""
    for name, command in a_parser().commands.items():
        yield (name,)
        yield from ((name, action) for action in command.commands)


def test_the_help_lists_every_command_in_a_group_and_the_exit_codes(cli: Cli) -> None:
    listed = cli("--help").out
    shown = re.findall(r"^  ([\w-]+)  +\w", listed.partition("\noptions:")[0], re.MULTILINE)
    assert shown == [command for group in GROUPS.values() for command in group]
    assert sorted(shown) == sorted(a_parser().commands)
    assert [title for title in GROUPS if f"\n{title}:\n" not in listed] == []
    assert "124  ended by force" in listed


@pytest.mark.parametrize("words", [*helps()], ids=" ".join)
def test_every_command_has_help_with_an_example_and_a_section_of_the_reference(cli: Cli, words: tuple[str, ...]) -> None:
    said = cli(*words, "--help").out
    assert said.startswith(f"usage: taskflow {' '.join(words)}")
    assert "positional arguments" not in said
    example = re.search(r"^example:\n  (.+)", said, re.MULTILINE)
    assert example is not None
    program, *arguments = shlex.split(example[1].partition(" > ")[0])
    assert (program, arguments[: len(words)]) == ("taskflow", list(words)) or words == ("schedules",)
    if words != ("help",):  # which prints the text
        a_parser().parse_args(arguments)
    section = re.search(r"^more: docs/reference/(.+)#(.+)", said, re.MULTILINE)
    assert section is not None
    titles = re.findall(r"^## (.+)", (REFERENCE / section[1]).read_text(), re.MULTILINE)
    assert section[2] in {title.replace(" ", "-") for title in titles}


def test_the_default_of_the_broker_is_described_once(cli: Cli) -> None:
    assert cli("--help").out.count("sqlite:///taskflow.db") == 1
    assert [words for words in helps() if "sqlite:///taskflow.db" in cli(*words, "--help").out] == []


@pytest.mark.parametrize("words", [(), ("jobs",), ("schedules", "backfill")], ids=" ".join)
def test_help_is_another_way_to_ask_for_the_help_of_a_command(cli: Cli, words: tuple[str, ...]) -> None:
    assert cli("help", *words).out == cli(*words, "--help").out


# --- completion: the script completes what the parser takes -------------------------------------------------------------


COMPLETE = """
source ./completion.sh
COMP_WORDS=({words}) COMP_CWORD={last}
{function} taskflow "${{COMP_WORDS[COMP_CWORD]}}" ""
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["taskflow", "fa"], ["failures"]),
        (["taskflow", "jobs", "--st"], ["--status"]),
        (["taskflow", "status", "--wa"], ["--watch"]),
        (["taskflow", "send", "work", "--mod"], ["--module"]),
        (["taskflow", "help", "fail"], ["failures"]),
        (["taskflow", "schedules", "back"], ["backfill"]),
        (["taskflow", "jobs", "--status", "fai"], ["failed"]),
    ],
)
def test_bash_completes_commands_options_and_choices(cli: Cli, words: list[str], expected: list[str]) -> None:
    script = cli("completion", "bash").out
    (cli.folder / "completion.sh").write_text(script)
    [function] = [line.split()[-2] for line in script.splitlines() if line.startswith("complete ")]
    asked = COMPLETE.format(words=" ".join(words), last=len(words) - 1, function=function)
    ran = subprocess.run(["bash", "-c", asked], cwd=cli.folder, capture_output=True, text=True, check=True, timeout=30)
    assert [word.strip() for word in ran.stdout.split()] == expected


def test_zsh_gets_a_script_for_its_function_path(cli: Cli) -> None:
    assert cli("completion", "zsh").out.startswith("#compdef taskflow\n")


def test_without_shtab_the_command_that_installs_it_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli("completion", "bash", code=2).err == "taskflow: completion needs shtab: pip install shtab\n"
