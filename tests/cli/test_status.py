"""`taskflow status | queues | workers`: the queues and workers of a store."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

from taskflow.broker.protocol import Broker
from taskflow.cli.status import Summary, watch
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.ids import IdFactory
from taskflow.model.session import Session
from tests.cli.inprocess import Cli
from tests.cli.json_output import check
from tests.cli.processes import a_terminal
from tests.cli.stock import Stock
from tests.support.verdicts import parked

COUNTS_OF_DEFAULT = {"held": 0, "scheduled": 1, "ready": 0, "running": 1, "succeeded": 1, "failed": 2, "cancelled": 1}
COUNTS_OF_MAIL = {"held": 0, "scheduled": 0, "ready": 2, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 0}


def test_queues_shows_every_count(cli: Cli, stock: Stock) -> None:
    queues = {queue["name"]: queue for queue in cli.json("queues")}
    assert {name: queue["counts"] for name, queue in queues.items()} == {"default": COUNTS_OF_DEFAULT, "mail": COUNTS_OF_MAIL}
    assert queues["mail"]["oldest_ready_for"] >= 0
    assert 0 < queues["default"]["next_due_in"] <= 3600
    heading, *rows = cli("queues").out.splitlines()
    assert heading.split() == ["QUEUE", *(status.upper() for status in COUNTS_OF_DEFAULT), "OLDEST"]
    assert rows[0].split() == ["default", *map(str, COUNTS_OF_DEFAULT.values())]
    *cells, oldest = rows[1].split()
    assert cells == ["mail", *map(str, COUNTS_OF_MAIL.values())]
    assert re.fullmatch(r"\d+s", oldest)


def test_status_shows_broker_workers_queues_and_totals(cli: Cli, stock: Stock) -> None:
    told = cli.json("status")
    assert told["broker"] == "sqlite:///queue.db"
    assert [queue["name"] for queue in told["queues"]] == ["default", "mail"]
    [worker] = told["workers"]
    assert (worker["name"], worker["queues"], worker["concurrency"], worker["leases"], worker["dying"]) == (
        "somewhere:1",
        ["default"],
        7,
        1,
        False,
    )
    assert told["totals"]["mail"]["enqueue"] == 2
    text = cli("status").out
    assert "broker     sqlite:///queue.db" in text
    assert re.search(r"^workers    1\n  somewhere:1: 1/7 busy, heartbeat \ds ago$", text, re.MULTILINE)
    assert "mail" in text


def test_status_names_queues_that_no_worker_takes(cli: Cli, stock: Stock) -> None:
    """The only worker takes jobs from "default" alone."""
    assert cli("status").out.endswith("no running worker takes jobs from mail: start one with `taskflow worker MODULE`\n")
    cli("pause", "mail", "empty")
    assert "empty (paused)" in cli("status").out
    assert cli("status").out.endswith("mail is paused: `taskflow resume mail` ends the pause\n")


def test_status_gives_few_hints(cli: Cli) -> None:
    async def fill(broker: Broker) -> None:
        fresh = IdFactory()
        await broker.enqueue([Envelope(id=fresh(), job="j", queue=f"queue{number}", payload=b"") for number in range(8)])

    cli.with_broker(fill)
    *_, table, first, second, third, fourth, fifth, last = cli("status").out.splitlines()
    assert table.startswith("queue7")
    assert all(hint.startswith("no running worker takes jobs from queue") for hint in (first, second, third, fourth, fifth))
    assert last == "and 3 more hints about other queues and jobs"


def test_parked_jobs_that_no_worker_knows_are_named(cli: Cli) -> None:
    """They are named only if each running worker has reported which jobs it knows."""

    async def fill(broker: Broker) -> None:
        fresh = IdFactory()
        worker = Session(id=bytes(16), name="here:1", ttl=60.0, jobs=("known",))
        await broker.register(worker)
        await broker.enqueue([Envelope(id=fresh(), job=name, payload=b"") for name in ("gone", "gone", "known")])
        leases = await broker.claim(worker.id, 1, [], 3)
        await broker.settle([parked(lease, 30.0) for lease in leases])
        await broker.enqueue([Envelope(id=fresh(), job="later", payload=b"", after=60.0)])

    cli.with_broker(fill)
    assert cli.json("status")["unknown_jobs"] == {"gone": 2}
    assert cli("status").out.splitlines()[-1].endswith("deploy the code that sent it, or `taskflow cancel --job gone`")

    async def register_another(broker: Broker) -> None:
        await broker.register(Session(id=b"x" * 16, name="there:1", ttl=60.0))

    cli.with_broker(register_another)
    assert cli.json("status")["unknown_jobs"] == {}


def test_workers_are_listed(cli: Cli, stock: Stock) -> None:
    heading, line = cli("workers").out.splitlines()
    assert heading.split() == ["NAME", "BUSY", "HEARTBEAT", "UP", "JOBS", "DEPLOY", "QUEUES"]
    assert re.fullmatch(r"somewhere:1 +1/7 +\d+s ago +\d+s +\? +- +default", line)
    assert [worker["jobs"] for worker in cli.json("workers")] == [[]]


def test_a_running_worker_reports_its_jobs_and_its_deploy(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so even while it runs a job that reads the status."""
    monkeypatch.setenv("TASKFLOW_DEPLOY", "v17")
    cli.write("tasks.py", LOOKING)
    cli.load("tasks").look.delay_sync()
    cli("worker", "tasks", "--drain")
    [told] = json.loads((cli.folder / "told").read_text())
    assert (told["jobs"], told["deploy"], told["leases"]) == (["old.look", "tasks.look"], "v17", 1)


LOOKING = """
import subprocess, sys
from taskflow import job

@job(aliases=("old.look",))
def look() -> None:
    with open("told", "w") as told:
        subprocess.run([sys.executable, "-m", "taskflow", "workers", "--json"], stdout=told, check=True)
"""


# --- status --watch: in place on a terminal, in blocks elsewhere --------------------------------------------------------


def a_summary(at: float, **totals: int) -> Summary:
    schedules = {"stored": 0, "paused": 0, "asleep": 0}
    return Summary(broker="memory://", at=at, queues=[], workers=[], schedules=schedules, totals={"mail": dict(totals)})


def test_rates_are_those_between_two_looks() -> None:
    before, after = a_summary(10.0, enqueue=100, succeed=50), a_summary(12.0, enqueue=110, succeed=80, fail=1, discard=1)
    assert after.rates_since(before) == {"mail": {"enqueued": 5.0, "done": 15.0, "failed": 1.0}}


def test_an_outage_is_shown_and_waited_out(capsys: pytest.CaptureFixture[str]) -> None:
    answers: Iterator[Summary | Exception] = iter([a_summary(1.0), *[BrokerUnavailable("no answer")] * 2, a_summary(2.0, enqueue=9)])

    async def read() -> Summary:
        answer = next(answers, asyncio.CancelledError())
        if isinstance(answer, BaseException):
            raise answer
        return answer

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(watch(read, 0.001, is_json=True))
    first, *during, after = map(json.loads, capsys.readouterr().out.splitlines())
    for line in (first, *during, after):
        check(["status", "--watch"], line)
    assert (first["trouble"], first["rates"]) == (None, {})
    assert re.fullmatch(r"since \d\d:\d\d:\d\d the store does not answer: no answer", during[0]["trouble"])
    assert during[0]["trouble"] == during[1]["trouble"]
    assert (after["trouble"], after["rates"]["mail"]["enqueued"]) == (None, 9.0)


@pytest.mark.unmeasured
def test_a_pipe_gets_a_block_each_time(cli: Cli, stock: Stock) -> None:
    command = [sys.executable, "-m", "taskflow", "status", "--watch", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().rstrip() for _ in range(20)]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert "\033" not in "".join(lines)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", lines[0])
    again = lines.index("") + 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", lines[again])
    [heading] = [line for line in lines[again:] if line.startswith("QUEUE")][:1]
    assert heading.split()[-3:] == ["IN/S", "DONE/S", "FAIL/S"]


class Terminal:
    """A terminal of this size that a command writes to."""

    def __init__(self, *argv: str, lines: int, columns: int) -> None:
        self.written = ""
        self._ours, theirs = a_terminal()
        self.resize(lines, columns)
        environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")} | {"TERM": "xterm"}
        command = [sys.executable, "-m", "taskflow", *argv]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, pattern: str) -> None:
        """Read until the output after the part that was read before contains the pattern."""
        seen = len(self.written)
        while not re.search(pattern, self.written[seen:]):
            self.written += os.read(self._ours, 65536).decode()

    def end(self) -> int:
        while True:
            try:
                self.written += os.read(self._ours, 65536).decode()
            except OSError:  # EIO: the other end is closed
                os.close(self._ours)
                return self.process.wait(60)


@pytest.mark.unmeasured
def test_a_terminal_is_redrawn_in_place(cli: Cli, stock: Stock) -> None:
    terminal = Terminal("status", "--watch", "0.1", lines=24, columns=80)
    terminal.until("FAIL/S")
    terminal.resize(5, 30)
    terminal.until(r"\.\.\. \d+ more lines")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    pictures = terminal.written.split("\033[H")[1:]
    assert len(pictures) > 1
    assert all(picture.count("\n") < 24 for picture in pictures)
    assert all("\033[K\r\n\033[J" in picture for picture in pictures)


def test_too_short_an_interval_is_refused(cli: Cli) -> None:
    assert "'0.01' is too short: use 0.1 or more" in cli("status", "--watch", "0.01", code=2).err
