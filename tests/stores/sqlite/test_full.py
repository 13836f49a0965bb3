"""No room: nothing new is taken in, and what is there is worked off."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from pathlib import Path

import pytest

from taskflow.broker.protocol import Added
from taskflow.broker.sqlite import SpaceLimits, SqliteBroker
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


def test_a_full_disk(tmp_path: Path) -> None:
    """Jobs until the disk is full, and what is left is another program's. Then nothing can be changed, and nothing is lost: what a worker
    offers again when there is room takes effect."""
    flags = unshare_flags("--mount")
    if flags is None:
        pytest.skip("this machine lets us mount no small disk")
    script = """
        import asyncio, subprocess, sys
        from pathlib import Path

        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", sys.argv[1]], check=True)
        sys.path.insert(0, sys.argv[2])
        from taskflow.broker.sqlite import SqliteBroker
        from tests.stores.sqlite.support import an_envelope, registered, succeeded
        from tests.stores.sqlite.test_full import drain, fill
        from taskflow.model.errors import BrokerUnavailable, StoreFull

        async def main():
            folder = Path(sys.argv[1])
            broker = SqliteBroker(folder / "queue.db")
            session = await registered(broker)
            await broker.enqueue([an_envelope() for _ in range(10)])
            leases = await broker.claim(session.id, 1, [], 10)
            (folder / "ballast").write_bytes(bytes(24 << 20))
            added = await fill(broker)
            with open(folder / "other", "ab", buffering=0) as other:
                try:
                    while True:
                        other.write(bytes(4096))
                except OSError:
                    pass
            try:
                for number in range(2_000):
                    await broker.enqueue([an_envelope(payload=bytes(3_000))])
            except StoreFull as full:
                print("refused:", "no room for new jobs" in str(full))
            added += number
            try:
                for _ in range(200):
                    await broker.settle([succeeded(lease) for lease in leases])
                    await broker.enqueue([an_envelope(payload=bytes(3_000))])
            except (BrokerUnavailable, StoreFull) as unavailable:
                print("refused:", "full" in str(unavailable) or "no room" in str(unavailable))
            (folder / "other").unlink()
            (folder / "ballast").unlink()
            print("settled", {answer.value for answer in await broker.settle([succeeded(lease) for lease in leases])})
            print("drained", await drain(broker) == added)
            await broker.close()

        asyncio.run(main())
    """
    root = Path(__file__).parents[3]
    command = ["unshare", *flags.split(), sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(root)]
    said = run_script("import os, sys; os.execvp(sys.argv[1], sys.argv[1:])", *command)
    assert said.splitlines() == ["refused: True", "refused: True", "settled {'ok'}", "drained True"]
