"""Receives wake-ups from a server, with one listener for each event loop and broker.

A waiter first announces its topics to the server, and only while the listener is subscribed. The answer names the topics for which
something has already happened, so nothing is missed.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

from taskflow.broker import topics as names
from taskflow.broker.nudges import Nudges, WakeUpFlag
from taskflow.model.errors import BrokerError
from taskflow.model.retry import Pauses, Retries

PAUSES: Final = Pauses(0.05, 2.0)

_JOB: Final = names.job(b"")

Lookup = Callable[[list[str], list[bytes]], Awaitable[tuple[list[str], list[bytes]]]]
"""Takes topics and job ids; returns those for which something has already happened."""


class ListeningNudges(Nudges):
    """Announces its topics to the server before it waits."""

    def __init__(self, listener: Listener, topics: Sequence[str]) -> None:
        super().__init__(listener.flag, topics)
        self._listener = listener

    async def wait(self, timeout: float | None = None) -> bool:
        listener, topics = self._listener, self._topics
        listener.want(topics)
        listener.begin_waiting(topics)
        try:
            return await super().wait(timeout)
        finally:
            listener.end_waiting(topics)

    @property
    def is_prompt(self) -> bool:
        return self._listener.is_on

    def close(self) -> None:
        super().close()
        self._listener.forget(self._topics)  # most jobs are waited for only once


class Listener(ABC):
    """Listens for one event loop. `errors` are the driver's; after one of them it subscribes again.

    `_armed` are the topics that the server knows. `times` counts the subscriptions: a wake-up for a topic armed before the last one may
    have been lost. `waited` maps each topic to the number of its waiters.
    """

    def __init__(self, arm: Lookup, errors: tuple[type[Exception], ...]) -> None:
        self.flag = WakeUpFlag()
        self.times = 0
        self.waited: dict[str, int] = {}
        self._arm = arm
        self._errors: tuple[type[Exception], ...] = (*errors, BrokerError)
        self._armed: set[str] = set()
        self._wanted: set[str] = set()
        self._is_on = asyncio.Event()
        self._has_wants = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def listen(self, topics: Sequence[str]) -> Nudges:
        if not self._tasks:
            self._tasks = [asyncio.create_task(duty()) for duty in self._duties()]
        return ListeningNudges(self, topics)

    def want(self, topics: Iterable[str]) -> None:
        for topic in topics:
            if topic not in self._armed:
                self._wanted.add(topic)
                self._has_wants.set()

    def forget(self, topics: Iterable[str]) -> None:
        """Make the next wait announce these topics again."""
        self._armed.difference_update(topics)

    def armed(self, topics: Iterable[str], times: int) -> None:
        """Record topics that another call announced to the server. `times` is the number of the subscription during which it began."""
        if self.is_on and times == self.times:
            self._armed.update(topics)

    def begin_waiting(self, topics: Sequence[str]) -> None:
        for topic in topics:
            self.waited[topic] = self.waited.get(topic, 0) + 1

    def end_waiting(self, topics: Sequence[str]) -> None:
        for topic in topics:
            self.waited[topic] -= 1
            if not self.waited[topic]:
                del self.waited[topic]

    @property
    def is_on(self) -> bool:
        """Return True while subscribed."""
        return self._is_on.is_set()

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _duties(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Return the coroutine functions that run while the listener is open."""
        return [self._stay_subscribed, self._keep_asking]

    # --- the subscription ---------------------------------------------------------------------------------------

    @abstractmethod
    async def hear(self, goes_on: Callable[[], None]) -> None:
        """Subscribe, call `goes_on`, and pass every topic that arrives to `told`, until the connection breaks."""

    def stays_armed(self, topic: str) -> bool:
        """Return True if the server announces the topic repeatedly after one request, even if something is there now."""
        return False

    def told(self, topics: Iterable[str], *, disarms: bool) -> None:
        """Wake the waiters of these topics. `disarms` is True if the server announces each topic only once per request."""
        heard = set(topics)
        if disarms:
            self._armed -= heard
        self.flag.wake(heard)

    async def _stay_subscribed(self) -> None:
        retries = Retries(PAUSES, random.random)
        while True:
            before = self.times
            try:
                await self.hear(self._goes_on)
            except self._errors:
                pass
            finally:
                self._is_on.clear()
                self._armed.clear()
            if self.times > before:
                retries.succeeded()
            await asyncio.sleep(retries.failed())

    def _goes_on(self) -> None:
        self.times += 1
        self._is_on.set()
        if self.times > 1:
            self.flag.wake_all()  # wake-ups may have been lost between the subscriptions

    # --- announcing topics ----------------------------------------------------------------------------------------

    async def _keep_asking(self) -> None:
        retries = Retries(PAUSES, random.random)
        while True:
            await self._has_wants.wait()
            await self._is_on.wait()
            self._has_wants.clear()
            wanted, self._wanted = self._wanted, set()
            try:
                await self._ask(wanted)
            except self._errors:
                self._wanted |= wanted
                self._has_wants.set()
                await asyncio.sleep(retries.failed())
            else:
                retries.succeeded()

    async def _ask(self, wanted: set[str]) -> None:
        times = self.times
        found = await look_for(wanted, self._arm)
        self.armed((topic for topic in wanted if topic not in found or self.stays_armed(topic)), times)
        self.flag.wake(found)


async def look_for(topics: Iterable[str], look: Lookup) -> set[str]:
    """Return the topics for which something has already happened."""
    wanted = set(topics)
    ids = [bytes.fromhex(topic.removeprefix(_JOB)) for topic in wanted if topic.startswith(_JOB)]
    there, ended = await look([topic for topic in wanted if not topic.startswith(_JOB)], ids)
    return {*there, *map(names.job, ended)}
