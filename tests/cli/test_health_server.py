"""`--health-port`: the answers to probes, over real connections, of real processes."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskflow.cli import health, health_server
from taskflow.cli.health import SystemdNotifier
from taskflow.cli.health_server import HealthServer, Page, listener
from taskflow.model.errors import ConfigurationError
from taskflow.worker.health import HealthCheck
from tests.cli.probes import a_worker, ask, ask_until
from tests.cli.processes import JOBS, TIMEOUT, Shell, ended_clearly
from tests.cli.systemd import FakeSystemd

# --- a worker's process --------------------------------------------------------------------------------------------------


def test_a_worker_that_works_is_live_and_ready(shell: Shell) -> None:
    worker, port = a_worker(shell)
    ready = ask_until(port, "/ready", 200)
    assert ready.body["ok"] is True
    assert ready.body["why"] == "the broker answers heartbeats, claims and settlements"
    assert ready.headers["content-type"] == "application/json"
    assert ask(port, "/live").status == 200
    worker.signal(signal.SIGTERM)
    ended_clearly(worker, [0])


def test_a_blocked_loop_is_reported_and_does_not_hang_the_probe(shell: Shell) -> None:
    worker, port = a_worker(shell)
    shell.send("block.bind()")
    worker.wait_for("begun")
    unwell = ask_until(port, "/live", 503)
    assert re.search(r"the event loop has been blocked for \d+\.\d s in tasks\.block [0-9a-f-]{36}", unwell.body["why"])
    assert ask(port, "/ready").status == 503
    shell.write("release", "")
    ask_until(port, "/live", 200)
    ask_until(port, "/ready", 200)
    worker.signal(signal.SIGTERM)
    ended_clearly(worker, [0])


def test_a_worker_that_starts_lives_and_is_not_ready(shell: Shell) -> None:
    shell.write(
        "tasks.py",
        """
        import asyncio
        from contextlib import asynccontextmanager
        from taskflow import configure, job

        @asynccontextmanager
        async def slow():
            print("starting", flush=True)
            await asyncio.sleep(3600)
            yield

        configure(lifespan=slow)

        @job
        async def note(): ...
        """,
    )
    worker = shell.taskflow("worker", "tasks", "--health-port", "0")
    worker.wait_for("starting")
    found = re.search(r":(\d+)/live", worker.said)
    assert found
    assert ask(int(found[1]), "/live").status == 200
    assert ask(int(found[1]), "/ready").body["why"] == "the worker has not started yet"
    worker.signal(signal.SIGTERM)
    ended_clearly(worker, [128 + signal.SIGTERM])


# --- the server itself ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[HealthServer]:
    asks: dict[str, Callable[[], HealthCheck]] = {
        "/live": lambda: HealthCheck(True, "fine", {"seconds": 1.5}),
        "/ready": lambda: HealthCheck(False, "not yet"),
    }
    pages: dict[str, Callable[[], Page | None]] = {
        "/metrics": lambda: ("text/plain", b"up 1\n"),
        "/scale": lambda: None,
        "/broken": lambda: ("", bytes(1 // 0)),
    }
    opened = HealthServer(listener("127.0.0.1", 0), asks, pages)
    opened.start()
    yield opened
    opened.stop()


def port_of(server: HealthServer) -> int:
    return int(server.url.rpartition(":")[2])


def raw(server: HealthServer, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=TIMEOUT) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_pages_are_served_as_they_are(server: HealthServer) -> None:
    answer = raw(server, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n")
    assert answer.endswith(b"\r\n\r\nup 1\n")
    told = ask(port_of(server), "/scale")
    assert (told.status, told.body["why"]) == (
        404,
        "no such page: use /live or /ready, or configure(telemetry=[Prometheus()]) in the worker's code to get this page",
    )


def test_a_page_that_cannot_be_made_is_an_answer(server: HealthServer) -> None:
    told = ask(port_of(server), "/broken")
    assert (told.status, told.body["why"]) == (500, "ZeroDivisionError: integer division or modulo by zero")
    assert ask(port_of(server), "/live").status == 200


MEASURED = """
import os
from taskflow import configure, job
from taskflow.telemetry import Prometheus

configure(telemetry=[Prometheus()])

@job(name="note")
async def note(number: int) -> None: ...

@job(name="crash")
def crash() -> None:
    os._exit(3)
"""


@pytest.mark.parametrize("options", [(), ("--processes", "2")], ids=["one process", "two processes"])
def test_the_port_has_the_metrics_of_all_processes(shell: Shell, options: tuple[str, ...]) -> None:
    """They include those of a process that has died."""
    shell.write("tasks.py", MEASURED)
    shell.send(*(f"note.bind({number})" for number in range(20)))
    worker = shell.worker("--health-port", "0", *options)
    found = re.search(r":(\d+)/live", worker.said)
    assert found
    port = int(found[1])
    expected = b'taskflow_runs_total{job="note",outcome="succeeded",queue="default"} 20.0'
    until_there(port, "/metrics", expected)
    until_there(port, "/metrics", b'taskflow_slots{state="free"} %d.0' % (200 if options else 100))
    until_there(port, "/scale", b'{"backlog":0,"oldest_ready_seconds":0.0}')
    if options:
        shell.send("crash.bind()")
        worker.wait_for("another worker starts")
        until_there(port, "/metrics", b'taskflow_slots{state="free"} 200.0')
        until_there(port, "/metrics", expected)


def until_there(port: int, path: str, text: bytes) -> None:
    ends_at = time.monotonic() + TIMEOUT
    while text not in (page := fetched(port, path)):
        assert time.monotonic() < ends_at, page.decode()
        time.sleep(0.2)


def fetched(port: int, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_the_health_check_decides_the_status_code(server: HealthServer) -> None:
    assert ask(port_of(server), "/live?verbose")[:2] == (200, {"ok": True, "why": "fine", "seconds": 1.5})
    assert ask(port_of(server), "/ready")[:2] == (503, {"ok": False, "why": "not yet"})


@pytest.mark.parametrize("path", ["/", "/metric", "/live/", "//live", "/LIVE"])
def test_other_paths_are_not_there(server: HealthServer, path: str) -> None:
    assert ask(port_of(server), path)[:2] == (404, {"why": "no such page: use /live or /ready"})


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /live HTTP/1.1\r\nHost: x\r\n\r\n", b"405 Method Not Allowed\r\nAllow: GET, HEAD"),
        (b"GET /live\r\n\r\n", b"400"),
        (b"GET /live SPDY/3\r\n\r\n", b"400"),
        (b"GET http://[/live HTTP/1.1\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", b"400"),
        (b"GET /live HTTP/1.1\r\nX: " + b"x" * 2 * health_server.MAX_REQUEST + b"\r\n\r\n", b"431"),
        (b"GET http://127.0.0.1/live HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /live HTTP/1.0\r\n\r\n", b"200"),
    ],
)
def test_requests_of_all_kinds_get_an_answer(server: HealthServer, request_bytes: bytes, status: bytes) -> None:
    assert raw(server, request_bytes).startswith(b"HTTP/1.1 " + status)


def test_a_silent_client_is_disconnected_and_no_other_is(server: HealthServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_server, "ANSWER_TIMEOUT", 0.3)
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=TIMEOUT) as silent:
        silent.sendall(b"GET /live")
        assert ask(port_of(server), "/live").status == 200
        with contextlib.suppress(ConnectionResetError):  # which is as good as closed
            assert silent.recv(1) == b""


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
@pytest.mark.parametrize("sent", [b"", b"GET /live HTTP/1.1\r\n"], ids=["nothing", "half a head"])
def test_a_flood_of_unfinished_connections_keeps_no_probe_out(server: HealthServer, address: str, sent: bytes) -> None:
    """The attacker opens a connection for each that is closed, from the probe's address or another one."""
    is_over = threading.Event()

    def attack() -> None:
        held = set[socket.socket]()
        while not is_over.is_set():
            while len(held) < 2 * health_server.MAX_OPEN:
                held.add(opened := connected(server, address))
                with contextlib.suppress(OSError):
                    opened.sendall(sent)
            closed, _, _ = select.select(held, (), (), 0.01)
            held -= set(closed)
            for connection in closed:
                connection.close()
        for connection in held:
            connection.close()

    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        time.sleep(0.3)
        assert [ask(port_of(server), "/live").status for _ in range(25)] == [200] * 25
    finally:
        is_over.set()
        attacker.join()


def connected(server: HealthServer, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(server)), timeout=TIMEOUT, source_address=(address, 0))


def test_an_address_that_is_not_ours_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"--health-port: cannot listen on '192\.0\.2\.1', port 0: "):
        listener("192.0.2.1", 0)
    with pytest.raises(ConfigurationError, match="cannot listen on 'no such host'"):
        listener("no such host", 0)


# --- systemd, by a socket that stands for its own -----------------------------------------------------------------------


TELLING = (
    JOBS
    + """
@job
async def tell() -> None:
    print("a job sees", os.environ.get("NOTIFY_SOCKET"), os.environ.get("WATCHDOG_USEC"), flush=True)
"""
)


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeSystemd]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    opened = FakeSystemd(f"@taskflow-{secrets.token_hex(8)}" if request.param == "abstract" else str(tmp_path / "notify"))
    with opened.socket:
        yield opened


def test_a_worker_reports_that_it_is_ready_alive_and_stopping(shell: Shell, systemd: FakeSystemd) -> None:
    """It reports that it is alive twice within the watchdog's time; the programs that its jobs start do not report for it."""
    shell.write("tasks.py", TELLING)
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
    shell.write("tasks.py", TELLING)
    shell.send("block.bind()")
    shell.environment |= {**systemd.environment, "WATCHDOG_USEC": "1000000"}
    worker = shell.taskflow("worker", "tasks")
    worker.wait_for("begun")
    systemd.wait_for("STATUS=the event loop has been blocked")
    for _ in range(4):  # it reports why every half second, and nothing else
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


def test_an_unusable_notify_socket_is_logged_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_line_break_in_a_name_gives_no_command_to_systemd(systemd: FakeSystemd) -> None:
    notifier = a_notifier(dict(systemd.environment))
    assert notifier is not None
    notifier.start()
    notifier.ready("working as a worker\nMAINPID=1\ud800")
    notifier.stop()
    assert systemd.hear() == ["READY=1", r"STATUS=working as a worker\nMAINPID=1\ud800"]


def test_a_socket_that_is_not_read_holds_nothing_up(
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
