"""`taskflow completion`: the script completes what the parser takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.inprocess import Cli

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
