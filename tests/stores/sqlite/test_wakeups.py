"""Wake-ups from process to process."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from taskflow.broker import topics
from taskflow.broker.sqlite import SqliteBroker, notifier
from taskflow.broker.sqlite.wake_folder import Folder
from tests.stores.sqlite.support import Open, an_envelope, connected, envelopes, registered, succeeded

SENDER = textwrap.dedent("""
    import asyncio, sys, time
    from taskflow.broker.sqlite import SqliteBroker
    from taskflow.model.envelope import Envelope
    from taskflow.model.ids import IdFactory

    async def main():
        broker, an_id = SqliteBroker(sys.argv[1]), IdFactory()
        await broker.read([bytes(16)])
        print("ready", flush=True)
        for line in sys.stdin:
            asked_at = time.monotonic()
            await broker.enqueue([Envelope(id=an_id(), job="work", payload=b"", queue=line.strip())])
            print(asked_at, flush=True)
        await broker.close()

    asyncio.run(main())
""")


class Other:
    """A process that enqueues when told to."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SENDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._read() == "ready"

    def enqueue(self, queue: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(queue + "\n")
        self._process.stdin.flush()

    def asked_at(self) -> float:
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate(timeout=10)
        assert self._process.returncode == 0


async def test_another_process_wakes_us_at_once(broker: SqliteBroker, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Median and worst of 50, from just before the enqueue there to the first line after the wait here."""
    await broker.enqueue([an_envelope()])
    other = Other(path)
    waits = list[float]()
    with broker.listen([topics.queue("mail")]) as waiter:
        for _ in range(50):
            other.enqueue("mail")
            assert await waiter.wait(5)
            woken_at = time.monotonic()
            waits.append(woken_at - other.asked_at())
    other.close()
    with capsys.disabled():
        median, worst = statistics.median(waits) * 1e3, max(waits) * 1e3
        print(f"\nsqlite: woken by another process in {median:.2f} ms (median), {worst:.2f} ms (worst of 50)")
    assert statistics.median(waits) < 0.05


async def test_a_path_too_long_for_a_socket(open_broker: Open, tmp_path: Path) -> None:
    """A socket's path has 107 bytes at most, a file's 4,095."""
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    broker = open_broker(folder / "queue.db")
    await broker.enqueue([an_envelope()])
    other = Other(folder / "queue.db")
    with broker.listen([topics.queue("mail")]) as waiter:
        began = time.monotonic()
        other.enqueue("mail")
        assert await waiter.wait(5)
        assert time.monotonic() - began < 2.0
    other.close()


@pytest.fixture(params=["by the flag", "by datagram"])
def told(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a broker of this process is told, and as one of another."""
    if request.param == "by datagram":
        monkeypatch.setattr(notifier, "local_listener", lambda name: None)


@pytest.mark.usefixtures("told")
async def test_two_brokers_of_one_process(open_broker: Open) -> None:
    one = open_broker()
    two = one.sibling()
    with one.listen([topics.ANY_QUEUE]) as waiter:
        await two.enqueue([an_envelope()])
        assert await waiter.wait(0.5)
    await two.close()


@pytest.mark.usefixtures("told")
async def test_only_who_listens_for_it_is_woken(broker: SqliteBroker, open_broker: Open) -> None:
    other = open_broker()
    await other.enqueue([an_envelope()])
    with broker.listen([topics.queue("a")]) as for_a, broker.listen([topics.queue("b")]) as for_b:
        await other.enqueue([an_envelope(queue="b")])
        assert await for_b.wait(0.5)
        assert not await for_a.wait(0.05)


async def test_more_than_a_datagram_holds(broker: SqliteBroker, open_broker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the listener looks for everything that it waits for."""
    monkeypatch.setattr(notifier, "local_listener", lambda name: None)
    monkeypatch.setattr(notifier, "_MOST_BYTES", 20)
    other = open_broker()
    job = an_envelope()
    await other.enqueue([job])
    with broker.listen([topics.job(job.id)]) as waiter:
        await other.cancel([job.id])
        assert await waiter.wait(0.5)


async def test_a_listener_of_this_process_gets_no_datagram(open_broker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is its thread woken; it is told all the same, however many brokers there are."""
    one = open_broker()
    two = one.sibling()

    def no_socket(this: notifier.SocketNotifier) -> socket.socket:
        raise AssertionError("a datagram")

    monkeypatch.setattr(notifier.SocketNotifier, "_opened", no_socket)
    with one.listen([topics.queue("mail")]) as here, two.listen([topics.queue("mail")]) as there:
        await one.enqueue(envelopes(2, queue="mail"))
        assert await here.wait(0.5)
        assert await there.wait(0.5)
    await two.close()


@pytest.mark.parametrize("change", ["ready", "ended", "stopping", "due"])
async def test_what_nobody_announces_is_seen_within_about_a_second(
    broker: SqliteBroker, open_broker: Open, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Another program has written to the file, or a wake-up was lost."""
    other = open_broker()
    job, session = an_envelope(), await registered(other)
    await other.enqueue([job])
    leases = [] if change == "ready" else await other.claim(session.id, 1, [], 1)
    monkeypatch.setattr(notifier.SocketNotifier, "announce", lambda *_: True)
    changes: dict[str, tuple[str, Callable[[], Awaitable[object]]]] = {
        "ready": (topics.queue("mail"), lambda: other.enqueue([an_envelope(queue="mail")])),
        "ended": (topics.job(job.id), lambda: other.settle([succeeded(lease) for lease in leases])),
        "stopping": (topics.session(session.id), lambda: other.cancel([job.id])),
        "due": (topics.DUE, lambda: other.enqueue([an_envelope(after=60.0)])),
    }
    topic, act = changes[change]
    with broker.listen([topic]) as waiter:
        assert not await waiter.wait(1.5)
        await act()
        assert await waiter.wait(3)


async def test_a_commit_that_concerns_nobody_wakes_nobody(broker: SqliteBroker, path: Path) -> None:
    """Otherwise each idle worker would claim once a second while any other one is busy."""
    session = await registered(broker)
    with broker.listen([topics.queue("mail"), topics.DUE, topics.session(session.id)]) as waiter:
        for _ in range(3):
            with connected(path) as stranger:
                stranger.execute("UPDATE taskflow_meta SET value = value + 1 WHERE name = 'pulse'")
            assert not await waiter.wait(1.2)


async def test_without_sockets_the_file_is_looked_at(broker: SqliteBroker, open_broker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system, or a system, that has none."""

    def no_socket(*args: object) -> socket.socket:
        raise OSError("not here")

    await broker.enqueue([an_envelope()])
    other = open_broker()
    await other.enqueue([an_envelope()])
    monkeypatch.setattr(Folder, "bind", no_socket)
    with broker.listen([topics.ANY_QUEUE]) as waiter:
        await waiter.wait(0.5)
        await other.enqueue([an_envelope()])
        assert await waiter.wait(2)


async def test_the_socket_of_a_dead_process_is_cleared_away(broker: SqliteBroker, path: Path) -> None:
    await broker.enqueue([an_envelope()])
    folder = Path(f"{path}-wake")
    folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(os.fspath(folder / "dead"))

    await broker.enqueue([an_envelope()])

    assert list(folder.iterdir()) == []


async def test_a_listener_that_does_not_keep_up_holds_nobody_up(broker: SqliteBroker, path: Path) -> None:
    await broker.enqueue([an_envelope()])
    folder = Path(f"{path}-wake")
    folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(os.fspath(folder / "deaf"))
        await asyncio.wait_for(asyncio.gather(*(broker.enqueue(envelopes(10)) for _ in range(700))), 20)


async def test_there_is_a_listener_only_while_somebody_listens(broker: SqliteBroker, path: Path) -> None:
    """And then one for all."""
    await broker.enqueue([an_envelope()])
    assert listeners() == []
    with broker.listen([topics.DUE]), broker.listen([topics.ANY_QUEUE]):
        [thread] = listeners()
        assert sum(file.is_socket() for file in Path(f"{path}-wake").iterdir()) == 1
    await asyncio.to_thread(thread.join, 5)
    assert listeners() == []
    assert list(Path(f"{path}-wake").iterdir()) == []
    with broker.listen([topics.ANY_QUEUE]) as waiter:
        await broker.enqueue([an_envelope()])
        assert await waiter.wait(1)


def listeners() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "taskflow-sqlite-listener"]


async def test_idleness_costs_next_to_nothing(broker: SqliteBroker, capsys: pytest.CaptureFixture[str]) -> None:
    """The processor time of three idle seconds with an open file and a listener."""
    await broker.enqueue([an_envelope()])
    with broker.listen([topics.ANY_QUEUE]) as waiter:
        await waiter.wait(1.5)
        began = time.process_time()
        await waiter.wait(3)
        share = (time.process_time() - began) / 3
    with capsys.disabled():
        print(f"\nsqlite: {share:.3%} of a core when idle")
    assert share < 0.003
