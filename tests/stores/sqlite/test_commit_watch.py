"""The commit of a caller's transaction wakes listeners, although no other connection is notified of it."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from taskflow.broker import topics
from taskflow.broker.sqlite import SqliteBroker, wakeups
from taskflow.broker.sqlite.transactions import Durability
from taskflow.broker.wakeups import Waiter
from taskflow.model.record import Status
from taskflow.model.verdict import Completed, Failed, RunError, Settled
from tests.stores.jobs import an_envelope, registered, statuses
from tests.stores.sqlite.support import Open, connected, started
from tests.support.callers import Caller
from tests.support.verdicts import settlement, succeeded


@pytest.fixture(autouse=True)
def listeners_do_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise they would find the jobs by themselves, a second later."""
    monkeypatch.setattr(wakeups, "POLL_INTERVAL", 60.0)


@pytest.fixture
async def caller(broker: SqliteBroker, path: Path) -> AsyncIterator[Caller]:
    store = await broker.transactional()
    with connected(path) as connection:
        yield Caller(connection, store)


@pytest.fixture
def mail(open_broker: Open) -> Iterator[Waiter]:
    """A listener of another broker, as in another process."""
    with open_broker().listen([topics.queue("mail")]) as waiter:
        yield waiter


async def test_a_commit_wakes_within_milliseconds(caller: Caller, mail: Waiter) -> None:
    """This includes a long transaction, during which no listener is woken."""
    waits = list[float]()
    for _ in range(30):
        with caller.transaction():
            caller.enqueue(an_envelope(queue="mail"))
        committed_at = time.monotonic()
        assert await mail.wait(5)
        waits.append(time.monotonic() - committed_at)
        await asyncio.sleep(0.003)
    assert statistics.median(waits) < 0.008
    while await mail.wait(0.1):  # it may be woken once more
        pass
    with caller.transaction():
        caller.enqueue(an_envelope(queue="mail"))
        assert not await mail.wait(1.5)
    assert await mail.wait(0.5)


async def test_a_rollback_wakes_no_one(broker: SqliteBroker, caller: Caller, mail: Waiter) -> None:
    """Nor does the next commit, for what was rolled back, in whole or to a savepoint. After another one, the watch has ended."""

    async def is_expected() -> bool:
        transactions = broker._running().writer._transactions
        return await broker.call(Durability.READ, lambda _: transactions.pause is not None)

    caller.begin()
    caller.enqueue(an_envelope(queue="mail"))
    caller.roll_back()
    assert not await mail.wait(0.05)
    assert await is_expected()
    with caller.transaction():
        caller.execute("SAVEPOINT s")
        caller.enqueue(an_envelope(queue="mail"))
        caller.execute("ROLLBACK TO s")
        caller.enqueue(an_envelope(queue="other"))
    assert not await mail.wait(0.05)
    with caller.transaction():
        caller.enqueue(an_envelope(queue="other"))
    assert not await mail.wait(0.05)
    assert not await is_expected()


SENDS = """
    from tests.support.callers import Caller

    def send(queue, job_id=None):
        caller = Caller(sqlite3.connect(sys.argv[1], isolation_level=None), store)
        caller.begin()
        caller.enqueue(an_envelope(queue=queue, **({"id": job_id} if job_id else {})))
        return caller

    store = asyncio.run(broker.transactional())
"""

FORKING = """
    send("mail").commit()
    if (pid := os.fork()) == 0:
        send("child").commit()
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0
"""


async def test_programs_that_end_after_their_commit_wake_listeners(open_broker: Open, mail: Waiter, path: Path) -> None:
    """The parent's operations work in its child, on one of the child's connections, which watches only its own commits."""
    with open_broker().listen([topics.queue("child")]) as child, started(SENDS + FORKING, path) as process:
        assert await child.wait(10)
        assert await mail.wait(5)
        assert await asyncio.to_thread(process.wait, 10) == 0


@pytest.mark.parametrize("is_committed", [False, True])
async def test_a_killed_program_has_sent_exactly_the_committed_jobs(broker: SqliteBroker, path: Path, is_committed: bool) -> None:
    """It has sent nothing else, whenever it dies; its lock is released with it."""
    for _ in range(2):
        job = an_envelope()
        sends = f"""
    caller = send("mail", bytes.fromhex(sys.argv[2]))
    {"caller.commit()" if is_committed else ""}
    print("now", flush=True)
    sys.stdin.readline()
"""
        with started(SENDS + sends, path, job.id.hex()) as process:
            assert process.stdout is not None
            await asyncio.to_thread(process.stdout.readline)
        assert await statuses(broker, job) == [Status.READY if is_committed else None]
        assert await broker.enqueue([an_envelope()])


@pytest.mark.parametrize("is_committed", [False, True])
async def test_a_killed_run_has_completed_exactly_the_committed_jobs(broker: SqliteBroker, path: Path, is_committed: bool) -> None:
    session = await registered(broker)
    await broker.enqueue([an_envelope()])
    [lease] = await broker.claim(session.id, 1, ["default"], 1)
    store = await broker.transactional()
    if (pid := os.fork()) == 0:
        with connected(path) as connection:
            caller = Caller(connection, store)
            caller.begin()
            caller.settle(succeeded(lease))
            if is_committed:
                caller.commit()
            os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.to_thread(os.waitpid, pid, 0)
    answer = Settled.COMMITTED if is_committed else Settled.OK
    assert await broker.settle([settlement(lease, Completed(Failed(RunError("Lost", "killed"))))]) == [answer]
