"""A broker that fails at a given point: at the n-th call of an operation, before it takes effect, while it does, or after."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, NamedTuple, Self, TypeVar

from taskflow.broker.protocol import Broker
from taskflow.model.errors import BrokerUnavailable

T = TypeVar("T")


class When(StrEnum):
    BEFORE = "before"
    DURING = "during"
    AFTER = "after"


class Action(StrEnum):
    """What happens at the failpoint: the call fails, the process is killed, or it waits until it reads "go on" from standard input."""

    RAISE = "raise"
    KILL = "kill"
    PAUSE = "pause"


class Failpoint(NamedTuple):
    verb: str
    when: When
    number: int
    act: Action

    @classmethod
    def parse(cls, text: str) -> Self:
        verb, when, number, act = text.split(":")
        return cls(verb, When(when), int(number), Action(act))

    def __str__(self) -> str:
        return f"{self.verb}:{self.when}:{self.number}:{self.act}"


class FailingBroker:
    """Passes operations on to the broker inside, except at the failpoint. `is_reached` is True once it has been reached."""

    def __init__(self, inside: Broker, point: Failpoint) -> None:
        self._inside = inside
        self._point = point
        self._calls = 0
        self.is_reached = False

    @property
    def as_broker(self) -> Any:
        """Return this object typed as a broker: a type checker does not see the operations that it passes on."""
        return self

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self._inside, verb)
        if verb != self._point.verb:
            return found
        return lambda *arguments, **more: self._at_the_point(lambda: found(*arguments, **more))

    async def _at_the_point(self, call: Callable[[], Awaitable[T]]) -> T:
        self._calls += 1
        if self._calls != self._point.number:
            return await call()
        self.is_reached = True
        if self._point.when is When.BEFORE:
            self._act()
            return await call()
        under_way = asyncio.ensure_future(call())
        if self._point.when is When.DURING:
            await asyncio.sleep(0)  # the call has been sent, and may be anywhere on its way
            self._act()
        answer = await under_way
        if self._point.when is When.AFTER:
            self._act()
        return answer

    def _act(self) -> None:
        match self._point.act:
            case Action.RAISE:
                raise BrokerUnavailable(f"failpoint {self._point}")
            case Action.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Action.PAUSE:
                print("paused", flush=True)
                sys.stdin.readline()
