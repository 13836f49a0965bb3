"""The commit of a caller's transaction wakes listeners, although no other connection is told of it."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from taskflow.broker import topics
from taskflow.broker.sqlite import SqliteBroker, wakeups
from taskflow.broker.sqlite.transactions import Durability
from taskflow.broker.wakeups import Waiter
from taskflow.model.record import Status
from taskflow.model.verdict import Completed, Failed, RunError, Settled
from tests.stores.sqlite.support import Open, an_envelope, connected, registered, succeeded
from tests.support.callers import Caller
from tests.support.verdicts import settlement

MAIL = topics.queue("mail")


@pytest.fixture(autouse=True)
def listeners_do_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would find the jobs by themselves, if a second later."""
    monkeypatch.setattr(wakeups, "POLL_INTERVAL", 60.0)


@pytest.fixture
async def caller(broker: SqliteBroker, path: Path) -> AsyncIterator[Caller]:
    store = await broker.transactional()
    with connected(path) as connection:
        yield Caller(connection, store)


@pytest.fixture
def mail(open_broker: Open) -> Iterator[Waiter]:
    """A listener of another broker, as in another process."""
    with open_broker().listen([MAIL]) as waiter:
        yield waiter


async def is_expected(broker: SqliteBroker) -> bool:
    """Whether the writer looks for a commit."""
    its = broker._running().writer._transactions
    return await broker.call(Durability.READ, lambda _: its.pause is not None)


async def test_a_commit_wakes_within_milliseconds(caller: Caller, mail: Waiter, capsys: pytest.CaptureFixture[str]) -> None:
    """Median and worst of 60."""
    waits = list[float]()
    for _ in range(60):
        with caller.transaction():
            caller.enqueue(an_envelope(queue="mail"))
        committed_at = time.monotonic()
        assert await mail.wait(5)
        waits.append(time.monotonic() - committed_at)
        await asyncio.sleep(0.003)
    with capsys.disabled():
        print(f"\nfrom a caller's commit to a waiter: median {statistics.median(waits) * 1e3:.1f} ms, worst {max(waits) * 1e3:.1f} ms")
    assert statistics.median(waits) < 0.008


async def test_so_does_one_after_a_long_transaction(caller: Caller, mail: Waiter) -> None:
    caller.begin()
    caller.enqueue(an_envelope(queue="mail"))
    assert not await mail.wait(1.5)
    caller.commit()
    assert await mail.wait(0.5)


async def test_a_rollback_wakes_no_one(broker: SqliteBroker, caller: Caller, mail: Waiter) -> None:
    """Nor does the next commit, for what was rolled back, in whole or to a savepoint. After another one, nothing is looked for any more."""
    caller.begin()
    caller.enqueue(an_envelope(queue="mail"))
    caller.roll_back()
    assert not await mail.wait(0.05)
    assert await is_expected(broker)
    caller.begin()
    caller.execute("SAVEPOINT s")
    caller.enqueue(an_envelope(queue="mail"))
    caller.execute("ROLLBACK TO s")
    caller.enqueue(an_envelope(queue="other"))
    caller.commit()
    assert not await mail.wait(0.05)
    with caller.transaction():
        caller.enqueue(an_envelope(queue="other"))
    assert not await mail.wait(0.05)
    assert not await is_expected(broker)


# --- the end of a process ------------------------------------------------------------------------------------------------


SCRIPT = """
    import asyncio, os, sqlite3, sys
    from taskflow.broker.sqlite import SqliteBroker
    from tests.stores.sqlite.support import an_envelope
    from tests.support.callers import Caller

    broker = SqliteBroker(sys.argv[1])
    store = asyncio.run(broker.transactional())
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    caller = Caller(connection, store)
    caller.begin()
    caller.enqueue(an_envelope(id=bytes.fromhex(sys.argv[2]), queue="mail"))
"""


@contextmanager
def running(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT) + textwrap.dedent(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_a_script_that_ends_after_its_commit_wakes_listeners(mail: Waiter, path: Path) -> None:
    job = an_envelope()
    with running("caller.commit()", path, job.id.hex()) as script:
        assert await mail.wait(10)
        assert await asyncio.to_thread(script.wait, 5) == 0


FORKING = """
    caller.commit()
    if (pid := os.fork()) == 0:
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        caller = Caller(connection, store)
        caller.begin()
        caller.enqueue(an_envelope(queue="child"))
        caller.commit()
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0
"""


async def test_a_fork_looks_for_its_own_commits_only(open_broker: Open, mail: Waiter, path: Path) -> None:
    """The operations that the parent has kept work there, on a connection of the child."""
    with open_broker().listen([topics.queue("child")]) as child, running(FORKING, path, an_envelope().id.hex()) as process:
        assert await child.wait(10)
        assert await mail.wait(5)
        assert await asyncio.to_thread(process.wait, 10) == 0


# --- kills ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_committed", [False, True])
async def test_a_killed_program_has_sent_what_it_has_committed(broker: SqliteBroker, path: Path, is_committed: bool) -> None:
    """And nothing else, at whatever moment it dies; its lock goes with it."""
    for _ in range(2):
        job = an_envelope()
        ending = "caller.commit()" if is_committed else ""
        with running(f"{ending}\nprint('now', flush=True)\nsys.stdin.readline()", path, job.id.hex()) as process:
            assert process.stdout is not None
            await asyncio.to_thread(process.stdout.readline)
            process.send_signal(signal.SIGKILL)
            process.wait()
        [record] = await broker.read([job.id])
        assert (record and record.status) is (Status.READY if is_committed else None)
        assert await broker.enqueue([an_envelope()])


@pytest.mark.parametrize("is_committed", [False, True])
async def test_a_killed_run_has_completed_what_it_has_committed(broker: SqliteBroker, path: Path, is_committed: bool) -> None:
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
