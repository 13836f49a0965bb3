"""The broker is away for a minute under load, with the times that users have; tests/faults/test_outages.py has the short form."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import pytest

from taskflow import BrokerUnavailable, EnqueueFailed
from taskflow.worker.events import BrokerCallFailed, SessionEnded
from tests.faults.outage import Bench
from tests.support.outages import Outage, outages
from tests.support.waiting import until

AWAY_FOR: Final = 60.0
RATE: Final = 100


@pytest.mark.parametrize("kind", outages(), ids=lambda kind: kind.name)
async def test_a_minute_under_load(kind: type[Outage]) -> None:
    """100 jobs a second of 50 ms, and ten that take longer than the outage. Whatever was sent is done, and nothing that ended is in vain;
    who sends meanwhile hears within the 5 s that it says so."""
    with kind() as outage:
        bench = Bench(outage)
        async with bench.work(ttl=20, concurrency=100):
            await bench.send(range(10), float("inf"))
            sender = Sender(bench)
            sending = asyncio.create_task(sender.send())
            await asyncio.sleep(5)
            async with bench.away():
                await asyncio.sleep(AWAY_FOR)
            await until(lambda: min(bench.begun[number] for number in range(10)) == 2)
            bench.release.set()
            await asyncio.sleep(5)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await until(lambda: sender.sent <= set(bench.ended))
        again = [number for number, times in bench.ended.items() if times > 1]
        tries = sum(isinstance(event, BrokerCallFailed) for event in bench.events)
        print(
            f"{kind.name}: {len(sender.sent)} sent, {len(sender.failed)} failures heard, the slowest after {max(sender.failed):.1f} s; "
            f"{len(bench.ended)} ended, {len(again)} again; {tries} attempts in {bench.away_for:.0f} s"
        )
        assert not again
        assert bench.has(SessionEnded)
        bench.nothing_was_in_vain()
        bench.has_not_spun()


class Sender:
    """`sent` are those that the broker has said to have; `failed` the seconds after which it was said that it has not answered."""

    def __init__(self, bench: Bench) -> None:
        self.sent: set[int] = set()
        self.failed: list[float] = []
        self._bench = bench

    async def send(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(1_000, 1_000_000):
                group.create_task(self._send(number))
                await asyncio.sleep(1 / RATE)

    async def _send(self, number: int) -> None:
        began_at = time.monotonic()
        try:
            await self._bench.note.delay(number, 0.05)
        except (BrokerUnavailable, EnqueueFailed):
            self.failed.append(time.monotonic() - began_at)
        else:
            self.sent.add(number)
