"""A worker's socket to its supervisor, and how the supervisor builds its workers' command."""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from taskflow.cli import health
from taskflow.cli.exit_codes import Exit
from taskflow.cli.health import Fleet, HealthReport, fact_lines, report_line
from taskflow.cli.parser import a_parser
from taskflow.cli.startup import command_of
from taskflow.model.measures import Measure, pack_measures
from taskflow.worker import supervisor
from taskflow.worker.children.syscalls import ExitStatus
from taskflow.worker.health import HealthCheck
from taskflow.worker.measuring import WorkerFacts, pack_facts
from taskflow.worker.processes import WorkerSocket
from tests.cli.probes import ask, ask_until
from tests.cli.processes import JOBS, TIMEOUT, Running, Shell, ended_clearly
from tests.cli.systemd import FakeSystemd

ELSEWHERE = """
import sys, time
sys.platform = "elsewhere"
from taskflow.cli.supervise import SupervisorSocket
SupervisorSocket(sys.argv[1], max_jobs=None).say(*sys.argv[2:])
print("attached", flush=True)
time.sleep(3600)
"""


def attached(shell: Shell, parent: int, words: str = "hello") -> tuple[socket.socket, Running]:
    """Return a socket and a process, on a system whose kernel does not end the process with its parent."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = shell.start("-c", ELSEWHERE, f"{theirs.fileno()} {parent} 0", words, pass_fds=[theirs.fileno()])
    return ours, process


def test_a_worker_ends_when_the_supervisors_socket_closes(shell: Shell) -> None:
    ours, process = attached(shell, os.getpid())
    process.wait_for("attached")
    assert ours.recv(100) == b"hello\n"
    assert process.process.poll() is None
    ours.close()
    assert process.end() == -signal.SIGKILL


def test_a_worker_sends_each_report_as_one_line(shell: Shell) -> None:
    """Neither a job's name in it nor an application's text can forge a line of the worker."""
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


# --- its flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("512k", 512 << 10), ("512M", 512 << 20), ("1G", 1 << 30), ("2g", 2 << 30)])
def test_sizes_are_bytes_or_have_a_unit(text: str, size: int) -> None:
    assert a_parser().parse_args(["worker", "tasks", "--max-memory", text]).max_memory == size


@pytest.mark.parametrize("text", ["0", "-1", "1.5G", "512MB", "1T", "", "G", "\uff11G"])
def test_a_malformed_size_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        a_parser().parse_args(["worker", "tasks", f"--max-memory={text}"])
    assert "is not a number of bytes, such as 536870912, 512M or 1G" in capsys.readouterr().err


# --- probes and systemd ask a supervisor how its workers are ------------------------------------------------------------


WELL = HealthCheck(True, "fine")
UNWELL = HealthCheck(False, "it stands still")


def supervised(shell: Shell, processes: int, *arguments: str) -> tuple[Running, int]:
    """Return a supervisor whose workers are at work, and the port at which it answers."""
    shell.write("tasks.py", JOBS)
    started = shell.taskflow("worker", "tasks", "--processes", str(processes), "--health-port", "0", *arguments)
    started.wait_for("working as", times=processes)
    found = re.search(r"health: http://127\.0\.0\.1:(\d+)/live and /ready", started.said)
    assert found, started.said
    return started, int(found[1])


def test_a_supervisor_answers_for_its_workers(shell: Shell) -> None:
    """It answers at one port, whichever of them start and end."""
    started, port = supervised(shell, 2)
    give_up_at = time.monotonic() + TIMEOUT
    while (told := ask(port, "/ready")).body.get("ready") != 2:
        assert time.monotonic() < give_up_at, told
        time.sleep(0.1)
    assert told.status == 200
    assert ask(port, "/live").body["workers"] == 2
    started.signal(signal.SIGHUP)
    started.wait_for("all workers have been replaced")
    ask_until(port, "/ready", 200)
    started.signal(signal.SIGTERM)
    ended_clearly(started, [0])


def test_systemd_hears_of_the_supervisor_alone(shell: Shell, tmp_path: Path) -> None:
    systemd = FakeSystemd(str(tmp_path / "notify"))
    with systemd.socket:
        shell.environment |= {**systemd.environment, "WATCHDOG_USEC": "2000000"}
        started, _ = supervised(shell, 2)
        systemd.wait_for("READY=1")
        systemd.wait_for("WATCHDOG=1")
        started.signal(signal.SIGTERM)
        systemd.wait_for("STOPPING=1")
        ended_clearly(started, [0])
        while systemd.hear(0.2):
            pass
    assert systemd.lines.count("READY=1") == systemd.lines.count("STOPPING=1") == 1


def test_one_worker_that_works_is_enough() -> None:
    workers = Fleet()
    assert (workers.live().is_well, workers.ready().is_well) == (True, False)
    workers.note(1, report_line(UNWELL, UNWELL))
    assert (workers.live().is_well, workers.ready().why) == (False, "no worker is ready: it stands still")
    workers.note(2, report_line(WELL, UNWELL))
    assert (workers.live().is_well, workers.ready().is_well) == (True, False)
    workers.note(2, report_line(WELL, WELL))
    assert (workers.live().is_well, workers.ready().is_well) == (True, True)
    assert workers.ready().facts == {"workers": 2, "live": 1, "ready": 1}
    workers.note(2, ExitStatus(-9))
    assert not workers.live().is_well


def test_a_worker_that_has_fallen_silent_does_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Fleet()
    workers.note(1, report_line(WELL, WELL))
    monkeypatch.setattr(health, "SILENCE_TIMEOUT", 0.0)
    assert "has been silent for" in workers.live().why
    assert not workers.ready().is_well


# --- the metrics of all workers -----------------------------------------------------------------------------------------


def some_facts(jobs: int, runs: int = 1) -> bytes:
    """Return the facts of a worker with this many jobs."""
    bins = dict.fromkeys(range(20), 100000)
    measure = Measure(runs={"succeeded": runs}, waits=bins, times=bins)
    return pack_facts(WorkerFacts(measures=pack_measures({("default", f"app.jobs.job_{n}"): measure for n in range(jobs)})))


def test_a_long_report_of_counts_does_not_close_the_line() -> None:
    """A worker counts up to 500 jobs. All lines may have arrived before the supervisor reads."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        lines = [*fact_lines(some_facts(250), None)]
        for line in lines:
            theirs.send(f"{line}\n".encode())
        worker_socket = WorkerSocket(ours)
        assert sum(map(len, lines)) > 65_536
        assert worker_socket.take() == lines
        assert not worker_socket.is_closed


@pytest.mark.parametrize("sent", range(4))
def test_a_report_that_was_cut_off_counts_for_nothing(sent: int) -> None:
    """If a line cannot be sent, its report ends there."""
    said, workers = list[str](), Fleet()

    class _Socket:
        def say(self, words: str) -> bool:
            said.append(words)
            return len(said) != sent + 1

    with HealthReport(argparse.Namespace(health_port=None), cast("Any", _Socket())) as report:
        report.facts = lambda: some_facts(20)
    del said[sent:]
    assert len(said) == sent
    old = [*fact_lines(some_facts(20, runs=7), None)]
    for line in [*old[:-1], *said]:
        workers.note(1, line)
    assert workers.metrics() is None
    for line in old:
        workers.note(1, line)
    page = workers.metrics()
    assert page is not None
    assert b'taskflow_runs_total{job="app.jobs.job_9",outcome="succeeded",queue="default"} 7.0' in page[1]


GARBLED = {
    "no numbers": "facts x y z",
    "no base64": "facts 0 1 !",
    "cut off": "facts 0 1 abc",
    "no msgpack": "facts 0 1 wQ==",
    "a negative number": "facts -1 0 x",
    "a huge number": f"facts {'9' * 5_000} 1 a",
}


@pytest.mark.parametrize("line", GARBLED.values(), ids=GARBLED)
def test_a_line_of_a_job_harms_no_supervisor(line: str) -> None:
    """A job may write to the descriptor of its worker's socket."""
    workers = Fleet()
    for pid in range(60):
        workers.note(pid, line)
        for good in fact_lines(some_facts(1), None) if pid % 2 else ():
            workers.note(pid, good)
        workers.note(pid, ExitStatus(0))
    page = workers.metrics()
    assert page is not None
    assert b'outcome="succeeded",queue="default"} 30.0' in page[1]
    assert len(workers._ended) <= health.MAX_ENDED


def test_a_worker_reports_its_last_counts_when_it_ends() -> None:
    """They cover the seconds since the previous report, for example of a worker that retires."""
    workers, said = Fleet(), list[str]()

    class _Socket:
        def say(self, words: str) -> bool:
            said.append(words)
            return True

    counted = b""
    with HealthReport(argparse.Namespace(health_port=None), cast("Any", _Socket())) as report:
        report.facts = lambda: counted
        counted = some_facts(300)
    for line in said:
        workers.note(1, line)
    page = workers.metrics()
    assert page is not None
    assert b'job="app.jobs.job_299",outcome="succeeded",queue="default"} 1.0' in page[1]
