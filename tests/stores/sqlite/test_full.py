"""No room: nothing new is taken in, and what is there is worked off. The write-ahead log stays bounded."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

import pytest

from taskflow.broker.admin import View
from taskflow.broker.sqlite import SqliteBroker, checkpoint
from tests.stores.jobs import envelopes
from tests.stores.sqlite.support import Open, connected, run_script
from tests.support.namespaces import unshare_flags

pytestmark = pytest.mark.slow


def test_a_full_disk(tmp_path: Path) -> None:
    """Jobs until the disk is full, and what is left is another program's. Then nothing can be changed, and nothing is lost: what a worker
    offers again when there is room takes effect."""
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


MIB = 1 << 20


async def write(broker: SqliteBroker, mebibytes: int) -> None:
    for _ in range(mebibytes * 4):
        await broker.enqueue(envelopes(256, payload=bytes(1_000)))


async def test_the_log_of_two_brokers_stays_bounded(open_broker: Open, path: Path) -> None:
    one, two = open_broker(), open_broker()
    await one.enqueue(envelopes(1))
    await asyncio.gather(write(one, 60), write(two, 60))
    assert Path(f"{path}-wal").stat().st_size < 100 * MIB
    with connected(path) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_nobody_makes_a_checkpoint_beside_another(broker: SqliteBroker, path: Path) -> None:
    """While somebody holds the lock on the side file the log only grows; afterwards it is carried over."""
    await broker.enqueue(envelopes(1))
    before = path.stat().st_size
    lock = os.open(f"{path}-taskflow", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    await write(broker, 40)
    assert path.stat().st_size == before
    os.close(lock)
    await write(broker, 30)
    assert path.stat().st_size > before


@pytest.mark.parametrize("is_endless", [False, True])
async def test_a_read_of_the_admin_interface_waits_for_a_checkpoint(
    broker: SqliteBroker, path: Path, monkeypatch: pytest.MonkeyPatch, is_endless: bool
) -> None:
    """Until it has ended, else for a while. The checkpoint waits for readers, so one that reads page after page would hold it up."""
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
