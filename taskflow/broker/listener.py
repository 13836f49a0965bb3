"""Wake-ups from a server: who waits asks to be told first, and hears what is there already. One for each event loop and broker.

Nothing falls between the look and the asking: a topic is asked for once the subscription is on, and the answer says what has
happened before.
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
"""Of topics and of jobs whose end is waited for, those that need not be waited for: there is something already."""


class ListeningNudges(Nudges):
    """Asks to be told before it waits."""

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
        self._listener.forget(self._topics)  # of jobs, most are waited for once


class Listener(ABC):
    """Listens for one event loop. `errors` are those of the driver: after one the subscription is made anew.

    `armed` are the topics that the server knows to tell of. `times` counts how often it has been subscribed: what was armed before the
    last time may not have been heard. `waited` are the topics that somebody waits for at this moment, with how many do.
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
        """Whoever comes to wait for them next asks anew."""
        self._armed.difference_update(topics)

    def armed(self, topics: Iterable[str], times: int) -> None:
        """The server was asked by other means, in a call that was begun when the subscription was the one numbered `times`."""
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
        """It is subscribed, and what is told is heard."""
        return self._is_on.is_set()

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _duties(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What is done as long as somebody may listen."""
        return [self._stay_subscribed, self._keep_asking]

    # --- the subscription ---------------------------------------------------------------------------------------

    @abstractmethod
    async def hear(self, goes_on: Callable[[], None]) -> None:
        """Subscribe, call `goes_on` when that is done, and tell what is heard by `told`, until the connection is cut."""

    def stays_armed(self, topic: str) -> bool:
        """The server tells of it again and again, once it has been asked: there need not be nothing at that moment."""
        return False

    def told(self, topics: Iterable[str], *, disarms: bool) -> None:
        """`disarms`: the server tells of these but once."""
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
            self.flag.wake_all()  # nobody knows what happened meanwhile

    # --- asking to be told ----------------------------------------------------------------------------------------

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
    """Those of the topics under which there is something already."""
    wanted = set(topics)
    ids = [bytes.fromhex(topic.removeprefix(_JOB)) for topic in wanted if topic.startswith(_JOB)]
    there, ended = await look([topic for topic in wanted if not topic.startswith(_JOB)], ids)
    return {*there, *map(names.job, ended)}
