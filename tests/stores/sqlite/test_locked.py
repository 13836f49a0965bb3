"""The file is another process's for a while."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from taskflow.broker.sqlite import SqliteBroker
from taskflow.model.errors import BrokerUnavailable
from tests.stores.sqlite.support import Open, an_envelope, another_that_holds, locked


async def test_a_lock_is_waited_for(broker: SqliteBroker, path: Path) -> None:
    await broker.enqueue([an_envelope()])
    with locked(path) as stranger:
        threading.Timer(0.2, lambda: stranger.execute("ROLLBACK")).start()
        assert await broker.enqueue([an_envelope()])


async def test_but_not_for_ever(open_broker: Open, path: Path) -> None:
    """It says what the matter is, and goes on as soon as it can."""
    broker = open_broker(timeout=0.2)
    await broker.enqueue([an_envelope()])
    job = an_envelope()
    with locked(path):
        began = time.monotonic()
        with pytest.raises(
            BrokerUnavailable, match=r"is locked by another connection, for longer than 0.2 s: find a program"
        ) as unavailable:
            await broker.enqueue([job])
        assert 0.15 < time.monotonic() - began < 1.5
    assert str(path) in str(unavailable.value)
    assert await broker.enqueue([job])


async def test_the_wait_is_bounded_in_all(open_broker: Open, path: Path) -> None:
    """Who comes while another waits does not wait for both."""
    broker = open_broker(timeout=1.5)
    await broker.enqueue([an_envelope()])
    with another_that_holds(path):
        first = asyncio.create_task(broker.enqueue([an_envelope()]))
        await asyncio.sleep(0.75)
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await broker.enqueue([an_envelope()])
        assert time.monotonic() - began < 2.1  # both one after the other: 2.25 s
        with pytest.raises(BrokerUnavailable):
            await first


async def test_opening_waits_too(open_broker: Open, path: Path) -> None:
    first = open_broker()
    await first.enqueue([an_envelope()])
    with locked(path) as stranger:
        threading.Timer(0.2, lambda: stranger.execute("ROLLBACK")).start()
        assert await open_broker().enqueue([an_envelope()])


async def test_a_process_that_writes_without_a_pause_leaves_room_for_others(broker: SqliteBroker, path: Path) -> None:
    """SQLite's own waiting pauses for up to 100 ms a time, and then hardly ever finds the lock free."""
    await broker.enqueue([an_envelope()])
    script = """
        import asyncio, sys
        from taskflow.broker.sqlite import SqliteBroker
        from tests.stores.sqlite.support import envelopes

        async def main():
            broker = SqliteBroker(sys.argv[1])
            await broker.read([bytes(16)])
            print("ready", flush=True)
            while True:
                await broker.enqueue(envelopes(50))

        asyncio.run(main())
    """
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)})  # noqa: ASYNC220 - it runs beside
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        waits = list[float]()
        for _ in range(20):
            began = time.monotonic()
            await broker.enqueue([an_envelope()])
            waits.append(time.monotonic() - began)
    finally:
        writer.kill()
        writer.communicate()
    assert statistics.median(waits) < 0.1
    assert max(waits) < 1
