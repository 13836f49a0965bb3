"""A broker that fails where it is told to: at the n-th call of a verb, before it has taken effect, while it does, or after."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import NamedTuple, Self, TypeVar

from taskflow.broker.console import Console
from taskflow.broker.nudges import Nudges
from taskflow.broker.protocol import Added, Broker, Refused, Upkept
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.record import Record, Status
from taskflow.model.schedule import Definition, Firing
from taskflow.model.session import Beat, BeatAnswer, Session
from taskflow.model.verdict import Settled, Settlement

T = TypeVar("T")


class When(StrEnum):
    BEFORE = "before"
    DURING = "during"
    AFTER = "after"


class Act(StrEnum):
    """What happens there: the call fails, the process is killed, or it stands still until its standard input says go on."""

    RAISE = "raise"
    KILL = "kill"
    PAUSE = "pause"


class Failpoint(NamedTuple):
    verb: str
    when: When
    number: int
    act: Act

    @classmethod
    def parse(cls, text: str) -> Self:
        verb, when, number, act = text.split(":")
        return cls(verb, When(when), int(number), Act(act))

    def __str__(self) -> str:
        return f"{self.verb}:{self.when}:{self.number}:{self.act}"


class FailingBroker:
    """The broker inside, but for the one point. `is_reached` claims that it was come by."""

    def __init__(self, inside: Broker, point: Failpoint) -> None:
        self._inside = inside
        self._point = point
        self._calls = Counter[str]()
        self.is_reached = False

    @property
    def console(self) -> Console:
        return self._inside.console

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        return await self._through("enqueue", lambda: self._inside.enqueue(envelopes))

    async def register(self, session: Session) -> None:
        await self._through("register", lambda: self._inside.register(session))

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        return await self._through("claim", lambda: self._inside.claim(session, request, queues, limit))

    async def beat(self, beat: Beat) -> BeatAnswer:
        return await self._through("beat", lambda: self._inside.beat(beat))

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return await self._through("settle", lambda: self._inside.settle(settlements))

    async def cancel(self, ids: Sequence[bytes]) -> list[Status | None]:
        return await self._through("cancel", lambda: self._inside.cancel(ids))

    async def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        return await self._through("read", lambda: self._inside.read(ids))

    async def holders(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self._through("holders", lambda: self._inside.holders(keys))

    async def upkeep(self, limit: int, *, ends: bool = False) -> Upkept:
        return await self._through("upkeep", lambda: self._inside.upkeep(limit, ends=ends))

    async def define(self, definitions: Sequence[Definition], session: bytes | None = None, age: float = 0.0) -> list[bool]:
        return await self._through("define", lambda: self._inside.define(definitions, session, age))

    async def fire(self, firings: Sequence[Firing]) -> list[Added | Refused | None]:
        return await self._through("fire", lambda: self._inside.fire(firings))

    def listen(self, topics: Sequence[str]) -> Nudges:
        return self._inside.listen(topics)

    def sibling(self) -> Broker:
        return self._inside.sibling()

    async def close(self) -> None:
        await self._inside.close()

    async def _through(self, verb: str, call: Callable[[], Awaitable[T]]) -> T:
        self._calls[verb] += 1
        if (verb, self._calls[verb]) != (self._point.verb, self._point.number):
            return await call()
        self.is_reached = True
        if self._point.when is When.BEFORE:
            self._act()
            return await call()
        under_way = asyncio.ensure_future(call())
        if self._point.when is When.DURING:
            await asyncio.sleep(0)  # it has been sent, and may be anywhere
            self._act()
        answer = await under_way
        if self._point.when is When.AFTER:
            self._act()
        return answer

    def _act(self) -> None:
        match self._point.act:
            case Act.RAISE:
                raise BrokerUnavailable(f"failpoint {self._point}")
            case Act.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Act.PAUSE:
                print("paused", flush=True)
                sys.stdin.readline()
