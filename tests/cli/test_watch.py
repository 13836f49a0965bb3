"""`taskflow status --watch`: in place on a terminal, in blocks elsewhere."""

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

from taskflow.cli.status import Summary, watch
from taskflow.model.errors import BrokerUnavailable
from tests.cli.inprocess import Cli
from tests.cli.json_output import check
from tests.cli.processes import a_terminal
from tests.cli.stock import Stock

pytestmark = pytest.mark.unmeasured


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
        """Read until what is written contains the pattern behind what was read before."""
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
