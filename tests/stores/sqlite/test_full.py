"""No room: nothing new is taken in, and what is there is worked off."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
from pathlib import Path

import pytest

from taskflow.broker.protocol import Added
from taskflow.broker.sqlite import SpaceLimits, SqliteBroker
from taskflow.broker.sqlite.store_file import MIB
from taskflow.model.errors import StoreFull
from taskflow.model.session import Beat
from taskflow.model.verdict import Settled
from tests.stores.sqlite.support import Open, a_session, an_envelope, envelopes, run_script, succeeded
from tests.support.namespaces import unshare_flags

pytestmark = pytest.mark.slow


async def fill(broker: SqliteBroker, payload: int = 3_000) -> int:
    """Until not one more goes in. How many jobs it has taken."""
    added = 0
    for size in (50, 5, 1):
        with contextlib.suppress(StoreFull):
            for _ in range(1_000):
                answers = await broker.enqueue(envelopes(size, payload=bytes(payload)))
                added += sum(isinstance(answer, Added) for answer in answers)
            raise AssertionError("it is never full")
    return added


async def drain(broker: SqliteBroker) -> int:
    """Claim and settle until nothing is left. How many were settled."""
    session, settled, request = a_session(), 0, 0
    await broker.register(session)
    while True:
        request += 1
        leases = await broker.claim(session.id, request, [], 100)
        if not leases:
            return settled
        await broker.beat(Beat(session=session.id, claims=tuple(lease.claim for lease in leases), seen=request))
        assert await broker.settle([succeeded(lease) for lease in leases]) == [Settled.OK] * len(leases)
        await broker.upkeep(1_000)
        settled += len(leases)


async def test_so_many_live_jobs_and_no_more(open_broker: Open) -> None:
    broker = open_broker(limits=SpaceLimits(capacity=10))
    assert await fill(broker) == 10
    with pytest.raises(StoreFull, match="at most 10 live jobs"):
        await broker.enqueue([an_envelope()])
    assert await drain(broker) == 10
    assert await broker.enqueue([an_envelope()])


async def test_without_disk_reserve_nothing_is_set_aside(open_broker: Open, path: Path) -> None:
    await open_broker(limits=SpaceLimits(disk_reserve=0)).enqueue([an_envelope()])
    assert path.with_name(path.name + "-taskflow").stat().st_size == 48


async def test_new_jobs_wait_until_the_reserve_is_back(open_broker: Open, path: Path) -> None:
    """Whoever finds it gone makes it anew first; there is room for it here."""
    broker = open_broker()
    await broker.enqueue([an_envelope()])
    side_file = path.with_name(path.name + "-taskflow")
    size, blocks = side_file.stat().st_size, side_file.stat().st_blocks
    assert blocks * 512 > 2 * MIB
    os.truncate(side_file, 48)
    await broker.enqueue([an_envelope()])
    assert (side_file.stat().st_size, side_file.stat().st_blocks) == (size, blocks)


async def test_the_refusal_says_what_is_needed(open_broker: Open) -> None:
    broker = open_broker(limits=SpaceLimits(disk_reserve=1 << 60))
    with pytest.raises(StoreFull, match=r"new jobs need .* MiB free"):
        await broker.enqueue([an_envelope()])


@pytest.mark.parametrize(("size", "payload"), [("10m", 3_000), ("64m", 3_000), ("64m", 10_000)])
def test_a_full_disk(tmp_path: Path, size: str, payload: int) -> None:
    """Jobs until it is full, and what is left is another program's. All jobs are worked off, and when that is gone new ones come in.

    A job's row stays as long as its result is kept: only a payload that had pages of its own (beyond some 4,000 bytes) is room at once.
    """
    flags = unshare_flags("--mount")
    if flags is None:
        pytest.skip("this machine lets us mount no small disk")
    script = """
        import asyncio, os, subprocess, sys
        from pathlib import Path

        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=" + sys.argv[3], "tmpfs", sys.argv[1]], check=True)
        sys.path.insert(0, sys.argv[2])
        from taskflow.broker.sqlite import SqliteBroker
        from tests.stores.sqlite.support import an_envelope
        from tests.stores.sqlite.test_full import drain, fill
        from taskflow.model.errors import StoreFull

        async def main():
            folder = Path(sys.argv[1])
            broker = SqliteBroker(folder / "queue.db")
            added = await fill(broker, int(sys.argv[4]))
            with open(folder / "other", "ab", buffering=0) as other:
                try:
                    while True:
                        other.write(bytes(4096))
                except OSError:
                    pass
            print("full", added > 400, os.statvfs(folder).f_bavail)
            try:
                await broker.enqueue([an_envelope()])
            except StoreFull as full:
                print("refused")
            print("drained", await drain(broker) == added)
            try:
                await broker.enqueue([an_envelope()])
                print("taken: room inside the file", await drain(broker) == 1)
            except StoreFull as full:
                print("refused: reserve is gone", os.stat(folder / "queue.db-taskflow").st_size == 48)
            (folder / "other").unlink()
            await broker.enqueue([an_envelope()])
            print("room again", os.stat(folder / "queue.db-taskflow").st_size > 2 << 20)
            again = await fill(broker, int(sys.argv[4]))
            print("much room", again > added // 2, await drain(broker) == again + 1)
            await broker.close()

        asyncio.run(main())
    """
    root = Path(__file__).parents[3]
    command = ["unshare", *flags.split(), sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(root), size, str(payload)]
    said = run_script("import os, sys; os.execvp(sys.argv[1], sys.argv[1:])", *command)
    assert said.splitlines() == [
        "full True 0",
        "refused",
        "drained True",
        "taken: room inside the file True" if payload > 4_096 else "refused: reserve is gone True",
        "room again True",
        f"much room {payload > 4_096} True",
    ]
