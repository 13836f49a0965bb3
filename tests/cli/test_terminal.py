"""What is shown on a terminal, and only there: colour and a bar that moves."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.inprocess import Cli
from tests.cli.stock import Stock

pytestmark = pytest.mark.unmeasured


def on_a_terminal(*argv: str, **environment: str) -> str:
    """What a command writes to its standard output when that is a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "taskflow", *argv]
    given = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"} | environment
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=given) as process:
        os.close(theirs)
        written = b""
        while chunk := _read(ours):
            written += chunk
        assert process.wait(60) == 0, process.stderr and process.stderr.read()
    os.close(ours)
    return written.decode()


def _read(file: int) -> bytes:
    try:
        return os.read(file, 65536)
    except OSError:  # EIO: nobody has the other end open any more
        return b""


def test_statuses_are_coloured_on_a_terminal(cli: Cli, stock: Stock) -> None:
    written = on_a_terminal("jobs")
    assert f"{stock.failed}  \033[31mfailed   \033[0m  default" in written
    assert "\033[" not in cli("jobs").out


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_wants_no_colour_gets_none(cli: Cli, stock: Stock, environment: dict[str, str]) -> None:
    assert "\033[" not in on_a_terminal("jobs", **environment)


def test_json_is_never_coloured(cli: Cli, stock: Stock) -> None:
    assert "\033[" not in on_a_terminal("jobs", "--json")


def test_a_bar_moves_on_a_terminal(cli: Cli, stock: Stock) -> None:
    written = on_a_terminal("cancel", "--all")
    assert "\r[" in written
    assert "4/4" in written
    assert written.endswith("cancelled 3, asked 1 running to stop\r\n")


def test_the_workers_log_is_plain_even_there(cli: Cli) -> None:
    Path("tasks.py").write_text("from taskflow import job\n@job\ndef work(): pass\n")
    assert "\033" not in on_a_terminal("worker", "tasks", "--drain")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_text_that_the_output_cannot_encode_is_escaped(cli: Cli, encoding: str) -> None:
    """A job's error may hold anything, and must be seen all the same."""
    Path("tasks.py").write_text("from taskflow import job\n@job(max_attempts=1)\ndef fail(): raise ValueError('bad \\ud800 \u6587')\n")
    run("-c", "from tasks import fail; fail.delay_sync()")
    run("-m", "taskflow", "worker", "tasks", "--drain", code=1)
    [job] = cli.json("jobs")
    for command in (["jobs"], ["jobs", job["id"]]):
        written = run("-m", "taskflow", *command, PYTHONIOENCODING=encoding)
        assert "failed" in written
    assert "ValueError: bad \\ud800 " in written


def run(*arguments: str, code: int = 0, **environment: str) -> str:
    ran = subprocess.run([sys.executable, *arguments], env=os.environ | environment, capture_output=True, timeout=60)
    assert ran.returncode == code, ran.stderr
    return ran.stdout.decode(environment.get("PYTHONIOENCODING", "utf-8"))


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "command",
    [["status"], ["jobs", "--json"], ["cancel", "--queue", "mail"], ["demo", "--limit", "1"], ["--help"], ["worker", "-h"], ["--version"]],
)
def test_output_that_cannot_be_written_is_said_in_a_line(cli: Cli, stock: Stock, command: list[str], unbuffered: str) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered, "TMPDIR": str(cli.folder)}
    with open("/dev/full", "w") as full:
        line = [sys.executable, "-m", "taskflow", *command]
        ran = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=environment)
    assert ran.stderr == "taskflow: [Errno 28] No space left on device\n"
    assert ran.returncode == 1


@pytest.mark.parametrize("command", ["status", "jobs", "cancel --queue mail"])
def test_without_an_output_a_command_does_its_work(cli: Cli, stock: Stock, command: str) -> None:
    ran = subprocess.run(f"'{sys.executable}' -m taskflow {command} >&-", shell=True, capture_output=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_a_reader_that_goes_away_is_no_error(cli: Cli, stock: Stock) -> None:
    """`taskflow jobs | head -1`"""
    command = [sys.executable, "-m", "taskflow", "jobs", "--json", *stock.all]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0
