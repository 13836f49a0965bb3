"""What is shown on a terminal, and only there: colours and a moving bar."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from taskflow.broker.protocol import Broker
from taskflow.cli.terminal import Column, cut, padded, table, width, wrapped
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory
from taskflow.model.session import Session
from tests.cli.inprocess import Cli
from tests.cli.processes import a_terminal
from tests.cli.stock import Stock

pytestmark = pytest.mark.unmeasured


def on_a_terminal(*argv: str, **environment: str) -> str:
    """Return what a command writes to its standard output when that is a terminal."""
    ours, theirs = a_terminal()
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
    except OSError:  # EIO: the other end is closed
        return b""


@pytest.mark.parametrize("command", ["status", "queues", "workers", "jobs"])
def test_tables_fit_80_columns(cli: Cli, stock: Stock, command: str) -> None:
    queues = ("q" * 60, "mail")

    async def fill(broker: Broker) -> None:
        fresh = IdFactory()
        await broker.enqueue([Envelope(id=fresh(), job="j" * 100, queue=queue, payload=b"") for queue in queues])
        await broker.register(Session(id=bytes(16), name="a.host.with.a.long.name:4711", queues=queues, concurrency=100, deploy="d" * 40))

    cli.with_broker(fill)
    for line in on_a_terminal(command, COLUMNS="80").replace("\r", "").splitlines():
        assert len(re.sub("\033\\[\\d*m", "", line)) <= 80, line


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("fits in one line", ["fits in one line"]),
        ("deploy the code, or `taskflow cancel --job a.b`", ["deploy the code, or", "`taskflow cancel --job a.b`"]),
        ("a " + "b" * 70, ["a", "b" * 30, "b" * 30, "b" * 10]),
        ("中" * 16, ["中" * 15, "中"]),
        ("a `lone backtick", ["a `lone backtick"]),
        ("", [""]),
    ],
)
def test_text_is_wrapped_to_a_width(text: str, lines: list[str]) -> None:
    assert list(wrapped(text, 30)) == lines


def test_a_bar_moves_on_a_terminal(cli: Cli, stock: Stock) -> None:
    written = on_a_terminal("cancel", "--all")
    assert "\r[" in written
    assert "4/4" in written
    assert written.endswith("cancelled 3, asked 1 running to stop\r\n")


@pytest.mark.parametrize(("answer", "flags", "left"), [("n", [], 8), ("", [], 8), ("y", [], 4), (None, ["--yes"], 4)])
def test_a_person_is_asked_before_jobs_are_destroyed(cli: Cli, stock: Stock, answer: str | None, flags: list[str], left: int) -> None:
    ours, theirs = a_terminal()
    command = [sys.executable, "-m", "taskflow", "purge", "--all", *flags]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        if answer is not None:
            assert b"purge 4 jobs? [y/N]" in _read(ours)
            os.write(ours, f"{answer}\n".encode())
        assert process.wait(60) == (left != 4)
    os.close(ours)
    assert len(cli.jobs()) == left


def test_the_workers_log_is_plain_even_there(cli: Cli) -> None:
    Path("tasks.py").write_text("from taskflow import job\n@job\ndef work(): pass\n")
    assert "\033" not in on_a_terminal("worker", "tasks", "--drain")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_text_that_the_output_cannot_encode_is_escaped(cli: Cli, encoding: str) -> None:
    """A job's error may contain anything, and must be visible all the same."""
    Path("tasks.py").write_text("from taskflow import job\n@job(max_attempts=1)\ndef fail(): raise ValueError('bad \\ud800 \u6587')\n")
    run("-c", "from tasks import fail; fail.delay_sync()")
    run("-m", "taskflow", "worker", "tasks", "--drain", code=1)
    [job] = cli.jobs()
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


def test_wide_and_combining_characters_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert [width(text) for text in ("abc", "漢字", "e\u0301", "ﾊﾝ", "한글x")] == [3, 4, 1, 2, 5]
    assert cut("漢字かな", 7) == "漢字..."
    assert padded("漢字かな", 7) == "...かな"
    assert cut("漢字", -5) == "..."
    assert padded("漢", 4) == "漢  "
    assert len({width(line) for line in table([Column("A", str), Column("B", len, is_number=True)], ["漢", "ab"])}) == 1


@pytest.mark.parametrize(
    ("environment", "is_colored"),
    [({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False), ({}, False)],
)
def test_force_color_colors_a_pipe_and_no_color_is_stronger(
    cli: Cli, stock: Stock, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], is_colored: bool
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for command in (["jobs"], ["status"], ["failures"], ["explain", stock.failed]):
        assert ("\033[31m" in cli(*command).out) is is_colored, command
    assert "\033" not in cli("jobs", "--json").out
