"""The file is locked, removed, replaced or damaged under an open broker, or the disk is full. The write-ahead log stays bounded."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import fcntl
import os
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from taskflow.broker.admin import View
from taskflow.broker.sqlite import SqliteBroker, checkpoint
from taskflow.model.errors import BrokerError, BrokerUnavailable
from tests.stores.jobs import an_envelope, envelopes
from tests.stores.sqlite.support import Open, connected, locked, run_script, started
from tests.support.listing import listed
from tests.support.namespaces import unshare_flags


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_lock_is_waited_for_but_not_for_ever(open_broker: Open, path: Path, is_open: bool) -> None:
    """This applies to a call, and to one that opens the file. The error names the lock, and work goes on as soon as possible."""
    broker, job = open_broker(timeout=0.3), an_envelope()
    with connected(path) as stranger:
        stranger.execute("PRAGMA journal_mode=WAL")
    if is_open:
        await broker.enqueue([an_envelope()])
    with locked(path) as stranger:
        began = time.monotonic()
        says = f"{path}.* has been locked by another connection for over 0.3 s: find a program"
        with pytest.raises(BrokerUnavailable, match=says):
            await (broker.enqueue([job]) if is_open else broker.migrate())
        assert 0.25 < time.monotonic() - began < 1.6
        threading.Timer(0.1, lambda: stranger.execute("ROLLBACK")).start()
        assert await broker.enqueue([job])


async def test_the_wait_is_bounded_in_all(open_broker: Open, path: Path) -> None:
    """A call that arrives while another waits does not wait for both."""
    broker = open_broker(timeout=1.5)
    await broker.enqueue([an_envelope()])
    with locked(path):
        first = asyncio.create_task(broker.enqueue([an_envelope()]))
        await asyncio.sleep(0.75)
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await broker.enqueue([an_envelope()])
        assert time.monotonic() - began < 2.1  # both one after the other: 2.25 s
        with pytest.raises(BrokerUnavailable):
            await first


async def test_a_process_that_writes_without_a_pause_leaves_room_for_others(broker: SqliteBroker, path: Path) -> None:
    """SQLite's own wait pauses for up to 100 ms at a time, and then hardly ever finds the lock free."""
    await broker.enqueue([an_envelope()])
    script = """
        async def main():
            await broker.read([bytes(16)])
            print("ready", flush=True)
            while True:
                await broker.enqueue(envelopes(50))

        asyncio.run(main())
    """
    waits = list[float]()
    with started(script, path) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        for _ in range(20):
            began = time.monotonic()
            await broker.enqueue([an_envelope()])
            waits.append(time.monotonic() - began)
    assert statistics.median(waits) < 0.1
    assert max(waits) < 1


@pytest.mark.parametrize("is_replaced", [False, True], ids=["removed", "replaced"])
@pytest.mark.parametrize("of_admin", [False, True], ids=["the writer", "the admin interface's reader"])
async def test_a_removed_or_replaced_file_is_not_used_any_more(open_broker: Open, path: Path, is_replaced: bool, of_admin: bool) -> None:
    """The next call reports this once, so that no user mistakes the new store for the old one. The one after it uses the new file."""
    broker, new = open_broker(), an_envelope()
    read: Callable[[], Awaitable[object]] = (lambda: listed(broker.admin)) if of_admin else (lambda: broker.read([new.id]))
    await broker.enqueue([an_envelope()])
    await read()
    path.unlink()
    if is_replaced:
        other = open_broker(path.with_name("other.db"))
        await other.enqueue([new])
        await other.close()
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        path.with_name("other.db").rename(path)

    with pytest.raises(BrokerUnavailable, match=f"{path}.*was removed or replaced"):
        await read()

    if of_admin:
        with pytest.raises(BrokerUnavailable, match="was removed or replaced"):  # the writer has the old file open too
            await broker.read([new.id])
    if not is_replaced:
        await broker.enqueue([new])
    assert [record.id for record in await listed(broker.admin)] == [new.id]
    assert [record is not None for record in await broker.read([new.id])] == [True]


async def test_neighbours_of_a_call_that_finds_the_file_damaged_may_try_again(broker: SqliteBroker, path: Path) -> None:
    await broker.enqueue(envelopes(10))
    with connected(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5.0)  # this thread hands over all calls before the writer's thread takes the first one
    try:
        first, *others = await asyncio.gather(*(broker.enqueue([an_envelope()]) for _ in range(4)), return_exceptions=True)
    finally:
        sys.setswitchinterval(interval)
    assert isinstance(first, BrokerError)
    assert "is not an SQLite database" in str(first)
    assert [type(other) for other in others] == [BrokerUnavailable] * 3


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    """Jobs and another program's file fill the disk. Then nothing can be changed, and nothing is lost: a worker's repeated settlements take
    effect when there is room."""
    flags = unshare_flags("--mount")
    if flags is None:
        pytest.skip("this machine lets us mount no small disk")
    script = """
        import contextlib, subprocess
        from pathlib import Path
        from taskflow.model.session import Beat

        folder = Path(sys.argv[1]).parent
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", folder], check=True)

        async def fill():
            added = 0
            for size in (50, 5, 1):
                with contextlib.suppress(StoreFull):
                    while True:
                        added += len(await broker.enqueue(envelopes(size, payload=bytes(3_000))))
            return added

        async def drain():
            session, settled, request = await registered(broker), 0, 0
            while leases := await broker.claim(session.id, request := request + 1, [], 100):
                await broker.beat(Beat(session=session.id, claims=tuple(lease.claim for lease in leases), seen=request))
                settled += [answer.value for answer in await broker.settle(list(map(succeeded, leases)))].count("ok")
                await broker.upkeep(1_000)
            return settled

        async def main():
            session = await registered(broker)
            await broker.enqueue(envelopes(10))
            leases = await broker.claim(session.id, 1, [], 10)
            (folder / "ballast").write_bytes(bytes(24 << 20))
            added = await fill()
            with open(folder / "other", "ab", buffering=0) as other, contextlib.suppress(OSError):
                while True:
                    other.write(bytes(4096))
            try:
                for number in range(2_000):
                    await broker.enqueue([an_envelope(payload=bytes(3_000))])
            except StoreFull as full:
                print("refused:", "no room for new jobs" in str(full))
            added += number
            try:
                for _ in range(200):
                    await broker.settle(list(map(succeeded, leases)))
                    await broker.enqueue([an_envelope(payload=bytes(3_000))])
            except (BrokerUnavailable, StoreFull) as unavailable:
                print("refused:", "full" in str(unavailable) or "no room" in str(unavailable))
            (folder / "other").unlink()
            (folder / "ballast").unlink()
            print("settled", {answer.value for answer in await broker.settle(list(map(succeeded, leases)))})
            print("drained", await drain() == added)
            await broker.close()

        asyncio.run(main())
    """
    said = run_script(script, tmp_path / "queue.db", within=["unshare", *flags.split()])
    assert said.splitlines() == ["refused: True", "refused: True", "settled {'ok'}", "drained True"]


async def write(broker: SqliteBroker, mebibytes: int) -> None:
    for _ in range(mebibytes * 4):
        await broker.enqueue(envelopes(256, payload=bytes(1_000)))


@pytest.mark.slow
async def test_the_log_of_two_brokers_stays_bounded(open_broker: Open, path: Path) -> None:
    one, two = open_broker(), open_broker()
    await one.enqueue(envelopes(1))
    await asyncio.gather(write(one, 60), write(two, 60))
    assert Path(f"{path}-wal").stat().st_size < 100 << 20
    with connected(path) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.slow
async def test_only_one_process_makes_a_checkpoint_at_a_time(broker: SqliteBroker, path: Path) -> None:
    """While another process holds the lock on the side file the log only grows; afterwards it is checkpointed."""
    await broker.enqueue(envelopes(1))
    before = path.stat().st_size
    lock = os.open(f"{path}-taskflow", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    await write(broker, 40)
    assert path.stat().st_size == before
    os.close(lock)
    await write(broker, 30)
    assert path.stat().st_size > before


@pytest.mark.slow
@pytest.mark.parametrize("is_endless", [False, True])
async def test_a_read_of_the_admin_interface_waits_for_a_checkpoint(
    broker: SqliteBroker, path: Path, monkeypatch: pytest.MonkeyPatch, is_endless: bool
) -> None:
    """It waits until the checkpoint has ended, or for a while. The checkpoint waits for readers, so a client that reads page after page
    would hold it up."""
    monkeypatch.setattr(checkpoint, "_BUSY_TIMEOUT_MS", 1 if is_endless else 60_000)
    await broker.enqueue(envelopes(1))
    assert len((await broker.admin.page(View())).records) == 1
    lock = os.open(f"{path}-taskflow", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    reading = asyncio.create_task(broker.admin.page(View()))
    if not is_endless:
        await asyncio.wait([reading], timeout=0.1)
        assert not reading.done()
        fcntl.flock(lock, fcntl.LOCK_UN)
    assert len((await asyncio.wait_for(reading, 30)).records) == 1
    os.close(lock)
