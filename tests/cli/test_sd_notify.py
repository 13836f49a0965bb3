"""What systemd is told, by a socket that stands for its own."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskflow.cli import health
from taskflow.cli.health import SystemdNotifier
from taskflow.worker.health import HealthCheck
from tests.cli.processes import Shell, ended_clearly
from tests.cli.systemd import FakeSystemd

TASKS = """
import asyncio, os, time
from pathlib import Path
from taskflow import job

@job
async def block() -> None:
    print("begun", flush=True)
    while not Path("release").exists():
        time.sleep(0.005)

@job
async def tell() -> None:
    print("a job sees", os.environ.get("NOTIFY_SOCKET"), os.environ.get("WATCHDOG_USEC"), flush=True)
"""


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeSystemd]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    opened = FakeSystemd(f"@taskflow-{secrets.token_hex(8)}" if request.param == "abstract" else str(tmp_path / "notify"))
    with opened.socket:
        yield opened


def test_a_worker_tells_that_it_is_ready_alive_and_stopping(shell: Shell, systemd: FakeSystemd) -> None:
    """Alive twice within the watchdog's time; and the programs that its jobs start do not speak for it."""
    shell.write("tasks.py", TASKS)
    shell.environment |= {**systemd.environment, "WATCHDOG_USEC": "2000000"}
    worker = shell.taskflow("worker", "tasks")
    assert "STATUS=working as " in "\n".join([systemd.wait_for("READY=1"), *systemd.lines])
    worker.wait_for("working as")
    for name in systemd.environment:
        del shell.environment[name]
    for _ in range(3):
        systemd.wait_for("WATCHDOG=1")
    shell.send("tell.bind()")
    worker.wait_for("a job sees None None")
    worker.signal(signal.SIGTERM)
    systemd.wait_for("STOPPING=1")
    ended_clearly(worker, [0])
    assert systemd.lines.count("READY=1") == systemd.lines.count("STOPPING=1") == 1


def test_a_worker_whose_loop_stands_still_gives_no_sign_of_life(shell: Shell, systemd: FakeSystemd) -> None:
    shell.write("tasks.py", TASKS)
    shell.send("block.bind()")
    shell.environment |= {**systemd.environment, "WATCHDOG_USEC": "1000000"}
    worker = shell.taskflow("worker", "tasks")
    worker.wait_for("begun")
    systemd.wait_for("STATUS=the event loop has been blocked")
    for _ in range(4):  # it says why, each half second, and nothing else
        [line] = systemd.hear()
        assert line.startswith("STATUS=the event loop has been blocked")
    shell.write("release", "")
    systemd.wait_for("WATCHDOG=1")
    worker.signal(signal.SIGTERM)
    ended_clearly(worker, [0])


def a_notifier(environment: dict[str, str], finding: HealthCheck = HealthCheck(True, "fine")) -> SystemdNotifier | None:  # noqa: B008  # it is frozen
    return SystemdNotifier.from_environment(environment, lambda: finding)


def test_without_a_socket_there_is_nothing_to_tell() -> None:
    environment = {"WATCHDOG_USEC": "1000000", "OTHER": "stays"}
    assert a_notifier(environment) is None
    assert environment == {"OTHER": "stays"}


def test_what_is_no_socket_is_told_and_not_used(caplog: pytest.LogCaptureFixture) -> None:
    assert a_notifier({"NOTIFY_SOCKET": "vsock:2:1234"}) is None
    assert "NOTIFY_SOCKET=vsock:2:1234 is neither a path nor an abstract socket" in caplog.text


@pytest.mark.parametrize(
    ("microseconds", "pid", "is_watched"),
    [
        ("200000", "", True),
        ("200000", str(os.getpid()), True),
        ("200000", str(os.getpid() + 1), False),
        ("0", "", False),
        ("soon", "", False),
        ("", "", False),
    ],
    ids=["every-process", "this-process", "another-process", "never", "no-number", "nothing"],
)
def test_signs_of_life_are_given_when_they_are_asked_of_this_process(
    systemd: FakeSystemd, microseconds: str, pid: str, is_watched: bool
) -> None:
    notifier = a_notifier({**systemd.environment, "WATCHDOG_USEC": microseconds, "WATCHDOG_PID": pid})
    assert notifier is not None
    notifier.start()
    notifier.ready("working as a worker")
    heard = [systemd.hear(), systemd.hear(0.5), systemd.hear(0.5)]
    notifier.stop()
    assert (["WATCHDOG=1"] in heard) is is_watched
    assert ["READY=1", "STATUS=working as a worker"] in heard


def test_a_second_session_is_no_second_start(systemd: FakeSystemd) -> None:
    notifier = a_notifier(dict(systemd.environment))
    assert notifier is not None
    notifier.start()
    notifier.ready("working as first")
    notifier.ready("working as second")
    notifier.stopping("winding down: 3 running")
    notifier.stop()
    told = [systemd.hear() for _ in range(3)]
    assert told == [["READY=1", "STATUS=working as first"], ["STATUS=working as second"], ["STOPPING=1", "STATUS=winding down: 3 running"]]
    assert systemd.hear(0.1) == []


def test_a_line_break_in_a_name_gives_no_command_to_systemd(systemd: FakeSystemd) -> None:
    notifier = a_notifier(dict(systemd.environment))
    assert notifier is not None
    notifier.start()
    notifier.ready("working as a worker\nMAINPID=1\ud800")
    notifier.stop()
    assert systemd.hear() == ["READY=1", r"STATUS=working as a worker\nMAINPID=1\ud800"]


def test_a_socket_that_nobody_reads_holds_nothing_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "SEND_TIMEOUT", 0.2)
    notifier = a_notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    assert notifier is not None
    notifier.start()
    for number in range(3):
        notifier.ready(str(number))
    notifier.stop()
    assert caplog.text.count("cannot notify systemd about this worker") == 1
