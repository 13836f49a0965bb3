"""A broker that counts its calls, and can be slow, unavailable, or deaf to nudges."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

from taskflow.broker.protocol import Added, Broker, Refused
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.record import Record, Status


class Watched:
    """Passes calls on to the broker behind it. Cast it by `as_broker`.

    `batches`    the envelopes of each enqueue, in order
    `calls`      how often each operation was called
    `is_away`    every operation raises BrokerUnavailable, before anything is done
    `loses_answers`  the number of answers of enqueue that are lost after it has been done
    `gate`       while closed, it holds up each enqueue that `is_held_up` selects
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.batches: list[list[Envelope]] = []
        self.calls: Counter[str] = Counter()
        self.reads: list[list[bytes]] = []
        self.is_away = False
        self.loses_answers = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_held_up: Callable[[Sequence[Envelope]], bool] = lambda envelopes: True
        self.arrived = asyncio.Event()

    @property
    def as_broker(self) -> Broker:
        return cast(Broker, self)

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        self._count("enqueue")
        self.batches.append(list(envelopes))
        self.arrived.set()
        if self.is_held_up(envelopes):
            await self.gate.wait()
        answers = await self._broker.enqueue(envelopes)
        if self.loses_answers:
            self.loses_answers -= 1
            raise BrokerUnavailable("the answer was lost")
        return answers

    async def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        self._count("read")
        self.reads.append(list(ids))
        return await self._broker.read(ids)

    async def holders(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self._count("holders")
        return await self._broker.holders(keys)

    async def cancel(self, ids: Sequence[bytes]) -> list[Status | None]:
        self._count("cancel")
        return await self._broker.cancel(ids)

    def _count(self, verb: str) -> None:
        self.calls[verb] += 1
        if self.is_away:
            raise BrokerUnavailable("the store is away")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)


async def settle_down() -> None:
    """Let everything run that can run at once."""
    for _ in range(10):
        await asyncio.sleep(0)
