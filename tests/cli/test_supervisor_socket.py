"""A worker's line to its supervisor, and how the supervisor comes by its workers' command."""

from __future__ import annotations

import os
import signal
import socket
import sys

import pytest

from taskflow.cli.exit_codes import Exit
from taskflow.cli.parser import a_parser
from taskflow.cli.startup import command_of
from taskflow.cli.worker_options import is_supervised
from taskflow.worker import supervisor
from tests.cli.processes import Running, Shell

ELSEWHERE = """
import sys, time
sys.platform = "elsewhere"
from taskflow.cli.supervise import SupervisorSocket
SupervisorSocket(sys.argv[1], max_jobs=None).say(*sys.argv[2:])
print("attached", flush=True)
time.sleep(3600)
"""


def attached(shell: Shell, parent: int, words: str = "hello") -> tuple[socket.socket, Running]:
    """A process on a system whose kernel does not end it with its parent."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = shell.start("-c", ELSEWHERE, f"{theirs.fileno()} {parent} 0", words, pass_fds=[theirs.fileno()])
    return ours, process


def test_where_the_kernel_does_not_end_it_the_end_of_the_line_does(shell: Shell) -> None:
    ours, process = attached(shell, os.getpid())
    process.wait_for("attached")
    assert ours.recv(100) == b"hello\n"
    assert process.process.poll() is None
    ours.close()
    assert process.end() == -signal.SIGKILL


def test_what_a_worker_says_is_one_line(shell: Shell) -> None:
    """A job's name in it, or a text of the application's, can say nothing in the worker's place."""
    ours, process = attached(shell, os.getpid(), "health 1 1 in a\ndrained 0\x1b")
    process.wait_for("attached")
    assert ours.recv(100) == b"health 1 1 in a\\ndrained 0\\x1b\n"
    ours.close()
    process.end()


def test_a_worker_whose_supervisor_has_gone_before_it_began_ends(shell: Shell) -> None:
    ours, process = attached(shell, 1)
    assert process.end() == -signal.SIGKILL
    assert "attached" not in process.said
    ours.close()


def test_the_supervisor_knows_the_workers_exit_codes() -> None:
    """The socket is in a lower layer than their table."""
    assert int(Exit.FORCED) == supervisor.FORCED
    assert supervisor.NO_STARTS == (Exit.FAILED, Exit.USAGE, Exit.BROKER)


# --- the workers' command ------------------------------------------------------------------------------------------------

ARGV = ["worker", "tasks", "--processes", "2"]


@pytest.mark.parametrize(
    "how",
    [["-m", "taskflow"], ["-X", "dev", "-m", "taskflow"], ["/usr/local/bin/taskflow"], ["-m", "coverage", "run", "-m", "taskflow"]],
)
def test_workers_are_started_as_the_supervisor_was(monkeypatch: pytest.MonkeyPatch, how: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["taskflow", *ARGV])
    monkeypatch.setattr(sys, "orig_argv", ["python", *how, *ARGV])
    assert command_of(ARGV) == [sys.executable, *how, *ARGV]


def test_called_by_another_program_they_are_started_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """That program, run again, would do who knows what."""
    monkeypatch.setattr(sys, "argv", ["manage.py", "work"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "manage.py", "work"])
    assert command_of(ARGV) == [sys.executable, "-m", "taskflow", *ARGV]


# --- its flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("512k", 512 << 10), ("512M", 512 << 20), ("1G", 1 << 30), ("2g", 2 << 30)])
def test_sizes_are_bytes_or_have_a_unit(text: str, size: int) -> None:
    assert a_parser().parse_args(["worker", "tasks", "--max-memory", text]).max_memory == size


@pytest.mark.parametrize("text", ["0", "-1", "1.5G", "512MB", "1T", "", "G", "\uff11G"])
def test_what_is_no_size_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        a_parser().parse_args(["worker", "tasks", f"--max-memory={text}"])
    assert "is not a number of bytes, such as 536870912, 512M or 1G" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--processes", "1"], ["--max-jobs", "5"], ["--max-memory", "1G"], ["--reload"]])
def test_any_of_the_flags_asks_for_a_supervisor(flags: list[str]) -> None:
    assert is_supervised(a_parser().parse_args(["worker", "tasks", *flags]))
    assert not is_supervised(a_parser().parse_args(["worker", "tasks"]))
