"""Nudges from process to process: which listeners get them, and what they cost."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
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
from taskflow.broker.sqlite import SqliteBroker, notifier
from taskflow.broker.sqlite.listener_files import ListenerFiles
from taskflow.broker.sqlite.wake_folder import WAITING, Listeners
from taskflow.model.clock import ManualClock, Seams
from taskflow.model.session import Beat
from tests.stores.sqlite.support import Open, an_envelope, envelopes, files, registered, run_script, succeeded, unmeasured

IDLE = textwrap.dedent("""
    import asyncio, os, sys
    from taskflow.broker.sqlite import SqliteBroker
    from taskflow.broker.sqlite.store_watch import StoreWatch
    from taskflow.model.session import Session

    StoreWatch.look = lambda *_, **__: set()  # only nudges count

    async def main():
        broker, session = SqliteBroker(sys.argv[1], namespace=sys.argv[2]), Session(id=os.urandom(16), name="idle")
        await broker.register(session)
        with broker.listen(["queues"]) as waiter:
            await broker.claim(session.id, 1, [], 10)
            print("waiting", flush=True)
            while await waiter.wait():
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


async def test_a_folder_that_is_replaced_gets_new_notes(broker: SqliteBroker, open_broker: Open, path: Path) -> None:
    """By the next claim that finds too little."""
    other = open_broker()
    session = await registered(other)
    with other.listen([topics.ANY_QUEUE]):
        await other.claim(session.id, 1, [], 1)
        shutil.rmtree(f"{path}-wake")
        os.mkdir(f"{path}-wake", 0o700)
        await other.claim(session.id, 2, [], 1)
        assert [note.state for note in Listeners(files(path)).notes.values()] == [WAITING]


def test_a_child_leaves_its_parents_files_alone(path: Path) -> None:
    """It was forked while its parent listened, and leaves the same with-statement."""
    script = """
        import asyncio, os, sys, warnings
        from taskflow.broker.sqlite import SqliteBroker

        warnings.simplefilter("ignore", DeprecationWarning)  # that forking with threads has its dangers

        async def main():
            broker = SqliteBroker(sys.argv[1])
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
    with waiting.listen([topics.queue("z")]) as waiter:
        await full.claim(session.id, 1, ["z"], 1)
        assert await waiter.wait(0.5)


@pytest.mark.usefixtures("only_nudges_count")
async def test_a_job_cannot_slip_in_between_a_claim_and_its_note(
    broker: SqliteBroker, open_broker: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note is written while the claim holds the write lock."""
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

    with broker.listen([topics.ANY_QUEUE]) as waiter:
        assert len(await broker.claim(session.id, 1, [], 1)) == 1  # it is busy now
        monkeypatch.setattr(ListenerFiles, "claimed", claimed_late)
        assert await broker.claim(session.id, 2, [], 1) == []
        await asyncio.gather(*enqueues)
        await asyncio.sleep(0.1)
        assert waiter._is_nudged


@pytest.mark.usefixtures("only_nudges_count")
async def test_a_worker_that_stops_before_it_claims_passes_its_nudge_on(open_broker: Open) -> None:
    sender, first, second = (open_broker() for _ in range(3))
    with first.listen([topics.DUE]):
        stopping = first.listen([topics.ANY_QUEUE])
        with second.listen([topics.ANY_QUEUE]) as waiter:
            await sender.enqueue([an_envelope()])
            assert not await waiter.wait(0.1)
            stopping.close()
            assert await waiter.wait(0.5)


@pytest.mark.usefixtures("only_nudges_count")
async def test_a_nudge_that_arrives_too_late_is_passed_on(open_broker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the datagram is read, nobody waits for jobs any more; the sender was quicker than the removal of the note."""
    sender, first, second = (open_broker() for _ in range(3))
    monkeypatch.setattr(notifier, "local_listener", lambda name: None)
    with first.listen([topics.DUE]), first.listen([topics.ANY_QUEUE]), second.listen([topics.ANY_QUEUE]) as waiter:
        files = first._running().listener._files
        assert files is not None
        files._topics.clear()
        await sender.enqueue([an_envelope()])
        assert await waiter.wait(0.5)


@pytest.mark.usefixtures("only_nudges_count")
async def test_two_senders_at_once_nudge_two_listeners(open_broker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen the same listener wait longest, and only one of them may nudge it."""
    both_have_listed, nudge_for = threading.Barrier(2, timeout=5), notifier._Delivery.nudge_for

    def together(*arguments: Any) -> None:
        both_have_listed.wait()
        nudge_for(*arguments)

    one, other, first, second = (open_broker() for _ in range(4))
    await asyncio.gather(one.read([]), other.read([]))
    monkeypatch.setattr(notifier._Delivery, "nudge_for", together)
    with first.listen([topics.ANY_QUEUE]) as first_nudges, second.listen([topics.ANY_QUEUE]) as second_nudges:
        await asyncio.gather(one.enqueue([an_envelope()]), other.enqueue([an_envelope()]))
        assert all(await asyncio.gather(first_nudges.wait(0.5), second_nudges.wait(0.5)))


@pytest.mark.parametrize(
    "name",
    ["....", ".0.1-0.1", "w.0.1-0.1", f"n.{'0' * 16}.1-{'0' * 12}.", f"x.{'0' * 16}.1-{'0' * 12}.", "j.", "j.x", "j.1-0", "w", "\udcff.j."],
)
async def test_other_files_in_the_folder_stay_there(broker: SqliteBroker, open_broker: Open, path: Path, name: str) -> None:
    other = open_broker()
    with other.listen([topics.ANY_QUEUE]) as waiter:
        Path(f"{path}-wake", name).touch()
        await broker.enqueue([an_envelope()])
        assert await waiter.wait(0.5)
        await broker.upkeep(10)
        assert len(files(path)) == 3


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
    with worker.listen([topics.ANY_QUEUE]) as waiter:
        assert await worker.claim(session.id, 1, [], 10) == []
        for request in range(2, 5):
            renamed.clear()
            await broker.enqueue([an_envelope()])
            assert await waiter.wait(1)
            assert len(await worker.claim(session.id, request, [], 10)) == 1
            assert [name[0] for name in renamed] == ["n", "w"]
        await broker.enqueue(envelopes(10))
        await waiter.wait(1)
        await worker.claim(session.id, 5, [], 1)
        renamed.clear()
        for request in range(6, 10):
            await worker.claim(session.id, request, [], 1)
            await broker.enqueue([an_envelope()])
        assert renamed == []


@pytest.mark.parametrize("number", [1, 20])
@pytest.mark.usefixtures("only_nudges_count")
async def test_a_lone_job_is_claimed_once_however_many_workers_are_idle(open_broker: Open, number: int) -> None:
    claims, seams = 0, Seams(clock=ManualClock())  # no nudge is ever old

    async def work(own: SqliteBroker, waiting: asyncio.Event) -> None:
        nonlocal claims
        session = await registered(own)
        with own.listen([topics.ANY_QUEUE]) as waiter:
            for request in itertools.count(1):
                leases = await own.claim(session.id, request, [], 10)
                claims += 1
                await own.settle([succeeded(lease) for lease in leases])
                waiting.set()
                await waiter.wait()

    async with asyncio.TaskGroup() as group:
        are_waiting = [asyncio.Event() for _ in range(number)]
        workers = [group.create_task(work(open_broker(seams=seams), is_waiting)) for is_waiting in are_waiting]
        await asyncio.gather(*(is_waiting.wait() for is_waiting in are_waiting))
        claims, broker = 0, open_broker(seams=seams)
        for _ in range(10):
            job = an_envelope()
            with broker.listen([topics.job(job.id)]) as waiter:
                await broker.enqueue([job])
                assert await waiter.wait(5)
        assert claims == 10
        for worker in workers:
            worker.cancel()
