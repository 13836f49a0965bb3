"""The file goes away under an open broker."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from taskflow.broker.sqlite import SqliteBroker
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerError, BrokerUnavailable
from tests.stores.sqlite.support import Open, a_session, an_envelope, connected, envelopes, succeeded


async def test_a_removed_file_is_made_anew(broker: SqliteBroker, path: Path) -> None:
    """It is said once, so that nobody takes the new store for the old one."""
    old, new = an_envelope(), an_envelope()
    await broker.enqueue([old])
    path.unlink()

    with pytest.raises(BrokerUnavailable, match="was removed or replaced") as unavailable:
        await broker.enqueue([new])

    assert str(path) in str(unavailable.value)
    await broker.enqueue([new])
    assert [record is not None for record in await broker.read([old.id, new.id])] == [False, True]
    assert path.exists()


async def test_a_replaced_file_is_opened(open_broker: Open, path: Path, tmp_path: Path) -> None:
    old, new = an_envelope(), an_envelope()
    broker, other = open_broker(), open_broker(tmp_path / "other.db")
    await broker.enqueue([old])
    await other.enqueue([new])
    await other.close()
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink()
    (tmp_path / "other.db").rename(path)

    with pytest.raises(BrokerUnavailable):
        await broker.read([new.id])

    assert [record is not None for record in await broker.read([old.id, new.id])] == [False, True]


async def test_a_removed_folder_is_a_clear_error(open_broker: Open, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    broker = open_broker(folder / "queue.db")
    await broker.enqueue([an_envelope()])
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()

    with pytest.raises(BrokerUnavailable):
        await broker.enqueue([an_envelope()])
    folder.mkdir()
    assert await broker.enqueue([an_envelope()])


# --- a backup takes the place of the file --------------------------------------------------------------------------


def back_up(path: Path) -> Path:
    backup = path.with_name("backup.db")
    with connected(path) as source, connected(backup) as target:
        source.backup(target)
        target.execute("PRAGMA journal_mode=DELETE")
    return backup


async def filled_and_restored(path: Path, *brokers: SqliteBroker) -> list[Envelope]:
    """All brokers have the file open, with much in its log, when an older copy is moved over it. The jobs of the copy."""
    jobs = envelopes(50)
    await brokers[0].enqueue(jobs)
    backup = back_up(path)
    for _ in range(20):
        for broker in brokers:
            await broker.enqueue(envelopes(50, payload=bytes(3_000)))
    backup.rename(path)
    return jobs


async def work_off(broker: SqliteBroker) -> set[bytes]:
    session, done, request = a_session(), set[bytes](), 0
    await broker.register(session)
    while leases := await broker.claim(session.id, request := request + 1, [], 100):
        await broker.settle([succeeded(lease) for lease in leases])
        done |= {lease.envelope.id for lease in leases}
    return done


def is_sound(path: Path) -> bool:
    with connected(path) as reader:
        return bool(reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)])


async def enqueue_on(brokers: list[SqliteBroker], times: int) -> set[bytes]:
    """The ids of those that were answered with success."""
    taken = set[bytes]()
    for number in range(times):
        fresh = envelopes(10)
        try:
            await brokers[number % len(brokers)].enqueue(fresh)
        except BrokerUnavailable:
            continue
        taken |= {envelope.id for envelope in fresh}
    return taken


async def test_a_restored_backup_is_not_mixed_with_the_former_log(open_broker: Open, path: Path) -> None:
    """Each of those who had the file open says so once; what is answered with success after that is in the restored file."""
    brokers = [open_broker() for _ in range(3)]
    jobs = await filled_and_restored(path, *brokers)

    taken = await enqueue_on(brokers, 30)

    assert len(taken) == 10 * (30 - len(brokers))
    assert is_sound(path)
    assert await work_off(brokers[0]) == taken | {job.id for job in jobs}
    for broker in brokers:
        await broker.close()
    assert is_sound(path)


async def test_an_opened_backup_is_recorded_with_its_log_and_index(open_broker: Open, path: Path) -> None:
    """The system gives their inodes to new files. A record of the former file would claim the new log, and the next opening remove it."""
    old, new = open_broker(), open_broker()
    await filled_and_restored(path, old)
    await old.close()
    assert recorded(path) == (0,) * 6

    await new.read([])

    assert recorded(path) == tuple(
        number for name in (path, f"{path}-wal", f"{path}-shm") for number in (os.stat(name).st_dev, os.stat(name).st_ino)
    )


def recorded(path: Path) -> tuple[int, ...]:
    return struct.unpack(">6Q", path.with_name(path.name + "-taskflow").read_bytes()[:48])


async def test_who_comes_first_after_a_restore_may_be_new(open_broker: Open, path: Path) -> None:
    """A command line that looks whether all is well, before a worker has noticed anything."""
    old, new = open_broker(), open_broker()
    jobs = await filled_and_restored(path, old)

    assert await new.read([jobs[0].id]) != [None]
    taken = await enqueue_on([new], 3)
    with pytest.raises(BrokerUnavailable, match="was removed or replaced"):
        await old.enqueue([an_envelope()])
    await old.close()
    taken |= await enqueue_on([new], 3)

    assert len(taken) == 60
    assert await work_off(new) == taken | {job.id for job in jobs}
    assert is_sound(path)


async def test_a_log_that_a_killed_process_left_is_not_the_backups(open_broker: Open, path: Path) -> None:
    killed = open_broker()
    jobs = envelopes(5)
    await killed.enqueue(jobs)
    backup = back_up(path)
    await killed.enqueue(envelopes(200))
    for ending in ("", "-wal", "-shm"):  # what a kill would leave, with the same inodes
        os.link(f"{path}{ending}", f"{path}{ending}-kept")
    await killed.close()
    for ending in ("-wal", "-shm"):
        os.replace(f"{path}{ending}-kept", f"{path}{ending}")
    backup.rename(path)

    assert await work_off(open_broker()) == {job.id for job in jobs}
    assert is_sound(path)


async def test_the_log_of_a_file_that_was_not_replaced_stays(open_broker: Open, path: Path, tmp_path: Path) -> None:
    """After a kill it holds what was answered with success; also when the whole store was copied elsewhere."""
    broker = open_broker()
    job = an_envelope()
    await broker.enqueue([job])
    (tmp_path / "copy").mkdir()
    for ending in ("", "-wal", "-shm", "-taskflow"):
        shutil.copy(f"{path}{ending}", tmp_path / "copy" / f"queue.db{ending}")

    assert await open_broker(tmp_path / "copy" / "queue.db").read([job.id]) != [None]
    assert await open_broker().read([job.id]) != [None]


async def test_processes_that_work_while_a_backup_is_restored(open_broker: Open, path: Path) -> None:
    script = """
        import asyncio, sys
        from taskflow.broker.sqlite import SqliteBroker
        from taskflow.model.errors import BrokerUnavailable
        from tests.stores.sqlite.support import envelopes

        async def main():
            broker = SqliteBroker(sys.argv[1])
            await broker.enqueue(envelopes(1))
            print("ready", flush=True)
            was_lost = left = 0
            while left < 20:
                left += was_lost
                try:
                    await broker.enqueue(envelopes(20, payload=bytes(1_000)))
                except BrokerUnavailable:
                    was_lost += 1
            await broker.close()
            print(was_lost)

        asyncio.run(main())
    """
    broker = open_broker()
    jobs = envelopes(5)
    await broker.enqueue(jobs)
    backup = back_up(path)
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(3)]  # noqa: ASYNC220 - they run beside
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    backup.rename(path)
    assert [(await asyncio.to_thread(process.communicate, timeout=30))[0] for process in processes] == [b"1\n"] * 3

    with pytest.raises(BrokerUnavailable):
        await broker.read([jobs[0].id])
    assert {job.id for job in jobs} < await work_off(broker)
    assert is_sound(path)


async def test_who_holds_the_side_file_is_named(open_broker: Open, path: Path) -> None:
    await open_broker().enqueue([an_envelope()])
    side = os.open(f"{path}-taskflow", os.O_RDONLY)
    fcntl.flock(side, fcntl.LOCK_EX)
    late = open_broker(timeout=0.1)
    with pytest.raises(BrokerUnavailable, match=rf"queue\.db-taskflow is locked by process {os.getpid()} "):
        await late.enqueue([an_envelope()])
    os.close(side)
    assert await late.enqueue([an_envelope()])


async def test_neighbours_of_a_call_that_finds_the_file_damaged_may_try_again(open_broker: Open, path: Path) -> None:
    broker = open_broker()
    await broker.enqueue(envelopes(10))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))

    calls = [broker.enqueue([an_envelope()]) for _ in range(4)]
    first, *others = await asyncio.gather(*calls, return_exceptions=True)

    assert isinstance(first, BrokerError)
    assert "is not an SQLite database" in str(first)
    assert [type(other) for other in others] == [BrokerUnavailable] * 3
