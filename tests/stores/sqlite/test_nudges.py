"""Nudges from process to process, and the files by which senders find listeners."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from taskflow.broker import topics
from taskflow.broker.sqlite import SqliteBroker, wake_sender, wakeups
from taskflow.broker.sqlite.listener_files import ListenerFiles
from taskflow.broker.sqlite.store_watch import StoreWatch
from taskflow.broker.sqlite.wake_folder import WAITING, Listeners
from taskflow.model.record import Status
from taskflow.model.session import Beat
from tests.stores.sqlite.support import NOBODY, Open, an_envelope, envelopes, registered, run_script, succeeded, unmeasured

IDLE = textwrap.dedent("""
    import asyncio, os, sys
    from taskflow.broker.sqlite import SqliteBroker
    from taskflow.broker.sqlite.store_watch import StoreWatch
    from taskflow.model.session import Session

    StoreWatch.look = lambda *_, **__: set()  # only nudges count

    async def main():
        broker, session = SqliteBroker(sys.argv[1], namespace=sys.argv[2]), Session(id=os.urandom(16), name="idle")
        await broker.register(session)
        with broker.listen(["queues"]) as nudges:
            await broker.claim(session.id, 1, [], 10)
            print("waiting", flush=True)
            while await nudges.wait():
                print("nudged", flush=True)

    asyncio.run(main())
""")


class Idle:
    """A worker process that waits for jobs, and does not claim when it is nudged."""

    @classmethod
    async def begin(cls, path: Path, namespace: str = "taskflow") -> Idle:
        idle = cls()
        idle.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", IDLE, str(path), namespace, stdout=subprocess.PIPE, env=unmeasured()
        )
        assert await idle._line(10) == "waiting"
        return idle

    process: asyncio.subprocess.Process

    async def is_nudged(self, within: float = 0.3) -> bool:
        return await self._line(within) == "nudged"

    async def _line(self, within: float) -> str | None:
        assert self.process.stdout is not None
        try:
            return (await asyncio.wait_for(self.process.stdout.readline(), within)).decode().strip()
        except TimeoutError:
            return None

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def idle(path: Path, number: int, namespace: str = "taskflow") -> AsyncIterator[list[Idle]]:
    """So many, the one that has waited longest first."""
    begun = list[Idle]()
    try:
        for _ in range(number):
            begun.append(await Idle.begin(path, namespace))
        yield begun
    finally:
        for one in begun:
            await one.end()


async def nudged(workers: Sequence[Idle], within: float = 0.3) -> list[bool]:
    return list(await asyncio.gather(*(worker.is_nudged(within) for worker in workers)))


def files(path: Path) -> list[str]:
    folder = path.with_name(path.name + "-wake")
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def only_nudges_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoreWatch, "look", lambda *_, **__: set[str]())


# --- processes --------------------------------------------------------------------------------------------------------------


async def test_those_that_have_waited_longest_are_nudged(broker: SqliteBroker, path: Path) -> None:
    async with idle(path, 3) as workers:
        await broker.enqueue(envelopes(2))
        assert await nudged(workers) == [True, True, False]


async def test_a_killed_process_is_passed_over_at_once(broker: SqliteBroker, path: Path) -> None:
    """And its files are removed."""
    async with idle(path, 3) as workers:
        first, second, third = workers
        await first.end()
        await broker.enqueue([an_envelope()])
        assert await nudged([second, third]) == [True, False]
        assert not [file for file in files(path) if f"{first.process.pid}-" in file]


async def test_a_stopped_process_loses_its_nudge_to_another(broker: SqliteBroker, path: Path) -> None:
    """With the next heartbeat of any worker, for example."""
    session = await registered(broker)
    async with idle(path, 2) as [first, second]:
        first.process.send_signal(signal.SIGSTOP)
        await broker.enqueue([an_envelope()])
        await broker.beat(Beat(session=session.id, looks=True))
        assert not await second.is_nudged()

        await broker.beat(Beat(session=session.id, looks=True))
        assert await second.is_nudged()

        first.process.send_signal(signal.SIGCONT)
        assert await first.is_nudged(1.0)


async def test_maintenance_removes_the_files_of_processes_that_were_killed(broker: SqliteBroker, path: Path) -> None:
    """In whatever state they were, and of no others."""
    async with idle(path, 2) as [first, second]:
        await broker.enqueue([an_envelope()])
        await first.end()
        await broker.upkeep(10)
        assert files(path) == [file for file in files(path) if f"{second.process.pid}-" in file] != []


async def test_jobs_of_another_namespace_nudge_nobody(broker: SqliteBroker, open_broker: Open, path: Path) -> None:
    other = open_broker(namespace="other")
    await other.enqueue([an_envelope()])
    async with idle(path, 1) as [ours], idle(path, 1, "other") as [others]:
        await other.enqueue([an_envelope()])
        assert await nudged([ours, others]) == [False, True]


async def test_a_folder_that_is_replaced_is_marked_anew(broker: SqliteBroker, open_broker: Open, path: Path) -> None:
    """By the next claim that finds too little."""
    other = open_broker()
    session = await registered(other)
    with other.listen([topics.ANY_QUEUE]):
        await other.claim(session.id, 1, [], 1)
        shutil.rmtree(f"{path}-wake")
        os.mkdir(f"{path}-wake", 0o700)
        await other.claim(session.id, 2, [], 1)
        assert [mark.state for mark in Listeners(files(path)).marks.values()] == [WAITING]


@pytest.mark.skipif(os.geteuid() != 0, reason="to become another user takes root")
@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["a folder for all", "a sticky one"])
async def test_users_who_share_a_store_nudge_each_other(broker: SqliteBroker, path: Path, mode: int) -> None:
    """In a sticky folder nobody may rename another user's mark; its owner is nudged all the same."""
    script = """
        import asyncio, os, sys
        from taskflow.broker.sqlite import SqliteBroker
        from taskflow.model.envelope import Envelope

        os.setuid(int(sys.argv[2]))

        async def main():
            broker = SqliteBroker(sys.argv[1])
            await broker.enqueue([Envelope(id=os.urandom(16), job="work", payload=b"")])
            await broker.close()

        asyncio.run(main())
    """
    for folder in [path.parent, *path.parent.parents]:
        if folder.owner() == "root" and folder != Path("/") and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    await broker.enqueue([an_envelope()])
    path.parent.chmod(0o777)
    for file in path.parent.glob("queue.db*"):
        file.chmod(0o666)
    async with idle(path, 1) as [worker]:
        Path(f"{path}-wake").chmod(mode)
        for file in Path(f"{path}-wake").iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o666
        run_script(script, path, NOBODY, env=unmeasured())
        assert await worker.is_nudged(1.0)


def test_a_child_leaves_its_parents_files_alone(path: Path) -> None:
    """It was forked while its parent listened, and leaves the same with-statement."""
    script = """
        import asyncio, os, sys, warnings
        from taskflow.broker.sqlite import SqliteBroker

        warnings.simplefilter("ignore", DeprecationWarning)  # that forking with threads has its dangers

        async def main():
            broker = SqliteBroker(sys.argv[1])
            with broker.listen(["queues", "due", "job:" + "ab" * 16]) as nudges:
                before = sorted(os.listdir(sys.argv[1] + "-wake"))
                if (pid := os.fork()) == 0:
                    nudges.close()
                    os._exit(0)
                os.waitpid(pid, 0)
                print(len(before), before == sorted(os.listdir(sys.argv[1] + "-wake")))
            await broker.close()

        asyncio.run(main())
    """
    assert run_script(script, path) == "3 True\n"


@pytest.mark.usefixtures("only_nudges_count")
async def test_a_worker_that_is_full_is_passed_over_whatever_else_it_waits_for(broker: SqliteBroker, open_broker: Open) -> None:
    """It waits for due times, for its session and for results as well."""
    worker = open_broker()
    session = await registered(worker)
    await broker.enqueue(envelopes(2))
    with (
        worker.listen([topics.ANY_QUEUE]) as jobs,
        worker.listen([topics.DUE]) as due,
        worker.listen([topics.job(bytes(range(16)))]) as result,
    ):
        assert len(await worker.claim(session.id, 1, [], 1)) == 1
        assert not any(await asyncio.gather(due.wait(0.1), result.wait(0.1)))
        await broker.enqueue([an_envelope()])
        await asyncio.sleep(0.1)
        assert not jobs._is_nudged  # a new wait would look


@pytest.mark.usefixtures("only_nudges_count")
async def test_a_claim_that_leaves_jobs_of_one_of_many_queues_nudges_the_next(broker: SqliteBroker, open_broker: Open) -> None:
    full, waiting = open_broker(), open_broker()
    session = await registered(full)
    await broker.enqueue([an_envelope(queue=f"queue-{number}") for number in range(300)])
    await broker.enqueue(envelopes(2, queue="z"))
    with waiting.listen([topics.queue("z")]) as nudges:
        await full.claim(session.id, 1, ["z"], 1)
        assert await nudges.wait(0.5)


@pytest.mark.usefixtures("only_nudges_count")
async def test_a_job_cannot_slip_in_between_a_claim_and_its_mark(
    broker: SqliteBroker, open_broker: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark is written while the claim holds the write lock."""
    other = open_broker()
    session = await registered(broker)
    await other.enqueue([an_envelope()])
    loop, enqueues = asyncio.get_running_loop(), list[asyncio.Task[object]]()
    claimed = ListenerFiles.claimed

    def claimed_late(files: ListenerFiles, *, is_full: bool) -> None:
        if not is_full:
            loop.call_soon_threadsafe(lambda: enqueues.append(loop.create_task(other.enqueue([an_envelope()]))))
            time.sleep(0.2)
        claimed(files, is_full=is_full)

    with broker.listen([topics.ANY_QUEUE]) as nudges:
        assert len(await broker.claim(session.id, 1, [], 1)) == 1  # it is busy now
        monkeypatch.setattr(ListenerFiles, "claimed", claimed_late)
        assert await broker.claim(session.id, 2, [], 1) == []
        await asyncio.gather(*enqueues)
        await asyncio.sleep(0.1)
        assert nudges._is_nudged


@pytest.mark.usefixtures("only_nudges_count")
async def test_two_senders_at_once_nudge_two_listeners(open_broker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen the same listener wait longest, and only one of them may nudge it."""
    both_have_listed, nudge_for = threading.Barrier(2, timeout=5), wake_sender._Delivery.nudge_for

    def together(*arguments: Any) -> None:
        both_have_listed.wait()
        nudge_for(*arguments)

    one, other, first, second = (open_broker() for _ in range(4))
    await asyncio.gather(one.read([]), other.read([]))
    monkeypatch.setattr(wake_sender._Delivery, "nudge_for", together)
    with first.listen([topics.ANY_QUEUE]) as first_nudges, second.listen([topics.ANY_QUEUE]) as second_nudges:
        await asyncio.gather(one.enqueue([an_envelope()]), other.enqueue([an_envelope()]))
        assert all(await asyncio.gather(first_nudges.wait(0.5), second_nudges.wait(0.5)))


# --- the end of a job ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["here", "by datagram"])
@pytest.mark.usefixtures("only_nudges_count")
async def test_a_small_result_comes_with_the_wake_up(
    broker: SqliteBroker, open_broker: Open, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """Its waiter does not ask the store again; any other reader does."""
    if told == "by datagram":
        monkeypatch.setattr(wake_sender, "listener_here", lambda name: None)
    waiting, job = open_broker(), an_envelope()
    session = await registered(broker)
    await broker.enqueue([job])
    with waiting.listen([topics.job(job.id)]) as nudges:
        await broker.settle([succeeded(lease) for lease in await broker.claim(session.id, 1, [], 1)])
        assert await nudges.wait(1)

        monkeypatch.setattr(SqliteBroker, "_look", None)
        [record] = await waiting.read([job.id])
        monkeypatch.undo()
    assert record == (await broker.read([job.id]))[0]
    assert record is not None
    assert (record.status, record.result) == (Status.SUCCEEDED, b"result")


@pytest.mark.usefixtures("only_nudges_count")
async def test_a_result_that_nobody_reads_is_not_kept(broker: SqliteBroker) -> None:
    job = an_envelope()
    await broker.enqueue([job])
    with broker.listen([topics.job(job.id)]) as nudges:
        await broker.cancel([job.id])
        assert await nudges.wait(1)
    assert broker._running().listener.take_ended(job.id) is None


@pytest.mark.parametrize("number", [1, 3_000])
@pytest.mark.usefixtures("only_nudges_count")
async def test_many_ends_cost_their_listener_one_message(
    broker: SqliteBroker, open_broker: Open, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """However many wait, and a listener that waits for other jobs gets none."""
    monkeypatch.setattr(wake_sender, "listener_here", lambda name: None)
    sent = list[tuple[str, wake_sender.Message]]()
    send = wake_sender.Sender.send

    def sending(sender: wake_sender.Sender, name: str, message: wake_sender.Message) -> bool:
        sent.append((name, message))
        return send(sender, name, message)

    monkeypatch.setattr(wake_sender.Sender, "send", sending)
    waiting, unconcerned, jobs = open_broker(), open_broker(), envelopes(number)
    await broker.enqueue(jobs)
    with contextlib.ExitStack() as stack:
        waits = [stack.enter_context(waiting.listen([topics.job(job.id)])) for job in jobs for _ in range(2)]
        stack.enter_context(unconcerned.listen([topics.job(an_envelope().id)]))
        await broker.cancel([job.id for job in jobs])
        assert all(await asyncio.gather(*(nudges.wait(5) for nudges in waits)))
    assert [(name, len(message.ended)) for name, message in sent] == [(sent[0][0], number)]


async def test_the_file_of_awaited_ids_goes_with_its_last_waiter(broker: SqliteBroker, path: Path) -> None:
    await broker.enqueue([an_envelope()])
    with broker.listen([topics.ANY_QUEUE]):
        with broker.listen([topics.job(bytes(range(16)))]):
            [file] = [file for file in Path(f"{path}-wake").iterdir() if file.name.startswith("j.")]
            assert file.read_bytes() == bytes(range(16))
        assert file.read_bytes() == bytes(16)
        await asyncio.sleep(wakeups.POLL_EVERY + 0.3)
        assert not file.exists()


# --- what it costs ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("only_nudges_count")
async def test_a_nudge_is_two_renamed_files(broker: SqliteBroker, open_broker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by the sender and one by the claim. While claims get as many jobs as they want, nothing is renamed."""
    worker = open_broker()
    session = await registered(worker)
    renamed, rename = list[str](), os.rename

    def counted(before: str, after: str, **options: int) -> None:
        renamed.append(after)
        rename(before, after, **options)

    monkeypatch.setattr(os, "rename", counted)
    with worker.listen([topics.ANY_QUEUE]) as nudges:
        assert await worker.claim(session.id, 1, [], 10) == []
        for request in range(2, 5):
            renamed.clear()
            await broker.enqueue([an_envelope()])
            assert await nudges.wait(1)
            assert len(await worker.claim(session.id, request, [], 10)) == 1
            assert [name[0] for name in renamed] == ["n", "w"]
        await broker.enqueue(envelopes(10))
        await nudges.wait(1)
        await worker.claim(session.id, 5, [], 1)
        renamed.clear()
        for request in range(6, 10):
            await worker.claim(session.id, request, [], 1)
            await broker.enqueue([an_envelope()])
        assert renamed == []
