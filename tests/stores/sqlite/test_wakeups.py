"""Wake-ups from process to process: their recipients, and their cost."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from taskflow.broker import topics
from taskflow.broker.sqlite import SqliteBroker, wake_folder
from taskflow.broker.sqlite.notifier import Notifier
from taskflow.broker.sqlite.wake_folder import Folder
from taskflow.broker.sqlite.wakeups import SocketListener
from tests.stores.jobs import an_envelope, envelopes, registered
from tests.stores.sqlite.support import Open, connected, run_script, started, wake_files
from tests.support.verdicts import succeeded
from tests.support.waiting import until

NUDGED_ONLY = "only_nudges_count"


def killed_while_it_waited(path: Path) -> int:
    """Return the id of a worker's process that waited for jobs when it was killed."""
    script = """
        async def main():
            session = await registered(broker, "idle")
            with broker.listen(["queues"]) as waiter:
                await broker.claim(session.id, 1, [], 10)
                await waiter.wait(0.1)
                os.kill(os.getpid(), 9)

        asyncio.run(main())
    """
    with started(script, path) as process:
        assert process.wait() == -signal.SIGKILL
    return process.pid


@pytest.mark.usefixtures(NUDGED_ONLY)
async def test_a_killed_process_is_passed_over_at_once(broker: SqliteBroker, open_broker: Open, path: Path) -> None:
    """It came last, and would be nudged first. Its files are removed, also by a new listener."""
    await broker.enqueue([an_envelope()])
    with open_broker().listen([topics.ANY_QUEUE]) as living:
        assert not await living.wait(0.05)
        pid = await asyncio.to_thread(killed_while_it_waited, path)
        assert [file for file in wake_files(path) if f"-{pid}-" in file]
        await broker.enqueue([an_envelope()])
        assert await living.wait(0.5)
        assert not [file for file in wake_files(path) if f"-{pid}-" in file]
    await asyncio.to_thread(killed_while_it_waited, path)
    with broker.listen([topics.DUE]):
        assert {file.split("-")[1] for file in wake_files(path)} == {str(os.getpid())}


def test_a_child_leaves_its_parents_files_alone(path: Path) -> None:
    """It was forked while its parent listened, and leaves the same with-statement."""
    script = """
        async def main():
            with broker.listen(["queues", "due", "job:" + "ab" * 16]) as waiter:
                before = sorted(os.listdir(sys.argv[1] + "-wake"))
                if (pid := os.fork()) == 0:
                    waiter.close()
                    os._exit(0)
                os.waitpid(pid, 0)
                print(len(before), before == sorted(os.listdir(sys.argv[1] + "-wake")))
            await broker.close()

        asyncio.run(main())
    """
    assert run_script(script, path) == "4 True\n"


async def test_a_listener_to_more_topics_than_a_file_name_holds_beside_a_path_that_is_too_long_for_a_socket(
    open_broker: Open, tmp_path: Path
) -> None:
    path = tmp_path / ("d" * 100) / ("e" * 100) / "queue.db"
    path.parent.mkdir(parents=True)
    with open_broker(path).listen([topics.queue(f"queue-{number}") for number in range(30)]) as waiter:
        await open_broker(path).enqueue([an_envelope(queue="queue-29")])
        assert await waiter.wait(0.5)


@pytest.mark.parametrize("number", [1, 3_000])
@pytest.mark.usefixtures(NUDGED_ONLY)
async def test_many_ends_cost_their_listener_one_message(
    broker: SqliteBroker, open_broker: Open, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """This holds for any number of waiters, and even if the ids do not fit into a datagram."""
    heard_of, send = list[int](), Notifier._send

    def sending(this: Notifier, name: str, heard: Sequence[str]) -> bool:
        heard_of.append(len(heard))
        return send(this, name, heard)

    monkeypatch.setattr(Notifier, "_send", sending)
    waiting, jobs = open_broker(), envelopes(number)
    await broker.enqueue(jobs)
    with contextlib.ExitStack() as stack:
        waits = [stack.enter_context(waiting.listen([topics.job(job.id)])) for job in jobs for _ in range(2)]
        await broker.cancel([job.id for job in jobs])
        assert all(await asyncio.gather(*(waiter.wait(5) for waiter in waits)))
    assert heard_of == [number]


async def test_a_slow_listener_holds_no_sender_up(broker: SqliteBroker, open_broker: Open) -> None:
    await broker.enqueue([an_envelope()])
    deaf = open_broker()._running().listener
    name, bound = deaf._folder.bind()
    deaf._folder.create(wake_folder.topics_file(name, [topics.session(bytes(16))]))
    sender = Notifier(deaf._store, deaf)
    with bound, contextlib.closing(sender):
        assert not all(sender._send(name, ["due"]) for _ in range(10_000))


@pytest.mark.parametrize("change", ["ready", "ended", "stopping", "due"])
async def test_unannounced_changes_are_seen_within_about_a_second(
    broker: SqliteBroker, open_broker: Open, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Another program has written to the file, or a wake-up was lost."""
    other = open_broker()
    job, session = an_envelope(), await registered(other)
    await other.enqueue([job])
    leases = [] if change == "ready" else await other.claim(session.id, 1, [], 1)
    monkeypatch.setattr(Notifier, "announce", lambda *_: None)
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


async def test_a_commit_that_concerns_no_listener_wakes_none(broker: SqliteBroker, path: Path) -> None:
    """Otherwise each idle worker would claim once a second while any other one is busy."""
    session = await registered(broker)
    with broker.listen([topics.queue("mail"), topics.DUE, topics.session(session.id)]) as waiter:
        for _ in range(2):
            with connected(path) as stranger:
                stranger.execute("UPDATE taskflow_meta SET value = value + 1 WHERE name = 'pulse'")
            assert not await waiter.wait(1.2)


def raise_no_space(*_: object) -> socket.socket:
    raise OSError(28, "No space left on device")


async def test_without_sockets_the_file_is_looked_at(broker: SqliteBroker, open_broker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system, or a system, may have none. The broker itself wakes its waiters all the same."""
    other = open_broker()
    await other.enqueue([an_envelope()])
    monkeypatch.setattr(Folder, "bind", raise_no_space)
    with broker.listen([topics.ANY_QUEUE]) as waiter:
        await waiter.wait(0.5)
        await other.enqueue([an_envelope()])
        assert await waiter.wait(2)
        with broker.listen([topics.queue("mail")]) as ours:
            monkeypatch.setattr(SocketListener, "_receive", lambda _: time.sleep(0.01))
            await broker.enqueue([an_envelope(queue="mail")])
            assert await ours.wait(0.5)


async def test_other_files_in_the_folder_stay_there(broker: SqliteBroker, open_broker: Open, path: Path) -> None:
    names = {"....", "w.0.1-0.1", f"{'0' * 16}.1-{'0' * 12}", f"{'0' * 8}-1-{'0' * 12}.x", "\udcff.j"}
    with open_broker().listen([topics.ANY_QUEUE]) as waiter:
        for name in names:
            Path(f"{path}-wake", name).touch()
        await broker.enqueue([an_envelope()])
        assert await waiter.wait(0.5)
        with broker.listen([topics.ANY_QUEUE]):
            assert names <= set(wake_files(path))


async def test_there_is_a_listener_only_while_a_task_waits(broker: SqliteBroker, path: Path) -> None:
    """There is then one for all."""

    def listeners() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "taskflow-sqlite-listener"]

    await broker.enqueue([an_envelope()])
    assert listeners() == []
    with broker.listen([topics.DUE]), broker.listen([topics.ANY_QUEUE]), broker.listen([topics.job(bytes(16))]):
        [thread] = listeners()
        assert sum(file.is_socket() for file in Path(f"{path}-wake").iterdir()) == 1
    await asyncio.to_thread(thread.join, 5)
    assert listeners() == []
    assert wake_files(path) == []
    with broker.listen([topics.ANY_QUEUE]) as waiter:
        await broker.enqueue([an_envelope()])
        assert await waiter.wait(1)


async def test_idleness_costs_next_to_nothing(broker: SqliteBroker) -> None:
    """The CPU time of three idle seconds with an open file and a listener is measured."""
    await broker.enqueue([an_envelope()])
    with broker.listen([topics.ANY_QUEUE]) as waiter:
        await waiter.wait(1.5)
        began = time.process_time()
        await waiter.wait(3)
        assert (time.process_time() - began) / 3 < 0.003


async def test_a_listener_whose_folder_was_replaced_binds_again(broker: SqliteBroker, open_broker: Open, path: Path) -> None:
    """Another process has removed the folder, and makes it again for its own listener."""
    await broker.enqueue([an_envelope()])
    other = open_broker()
    with broker.listen([topics.queue("mail"), topics.DUE]) as waiter:
        before = broker._running().listener.name
        shutil.rmtree(f"{path}-wake")
        with open_broker().listen([topics.ANY_QUEUE]):
            await until(lambda: broker._running().listener.name not in (None, before))
            await waiter.wait(0.1)
            assert len(wake_files(path)) == 6
            await other.enqueue([an_envelope(queue="mail")])
            assert await waiter.wait(0.5)
