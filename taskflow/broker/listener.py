"""Receives wake-ups from a server. Each broker has one listener per event loop, and each listener has a separate channel.

The server nudges only as many listeners as there are jobs to claim. If a listener is
nudged for jobs that none of its tasks is waiting for any more, upkeep nudges another one.

A waiter's topics are announced to the server once the listener is subscribed. The server's answer names the topics for which something has
already happened, so nothing is missed.
"""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from taskflow.broker.tasks import Duty
from taskflow.broker.topics import ANY_QUEUE, QUEUE_PREFIX, job as job_topic, job_ids, split_topics
from taskflow.broker.wakeups import Waiter, WakeUpFlag
from taskflow.model.clock import SYSTEM_RANDOM
from taskflow.model.errors import BrokerError
from taskflow.model.pauses import Pauses, Retries
from taskflow.model.record import Record

PAUSES: Final = Pauses(0.05, 2.0)

LISTENER_ID_BYTES: Final = 8

Lookup = Callable[[list[str], list[bytes]], Awaitable[tuple[list[str], list[bytes]]]]
"""A function that takes topics and job ids, and returns those for which something has already happened."""


class ListenerState(NamedTuple):
    """The facts that a listener reports to the server with each claim.

    `is_listed`   True if, as far as the listener knows, the server lists it as waiting for jobs
    `was_nudged`  True if it has been nudged since its last claim
    """

    is_listed: bool
    was_nudged: bool


class AnnouncedWaiter(Waiter):
    """A waiter whose listener announces its topics to the server when a wait begins."""

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
    """Receives the wake-ups for one event loop. It resubscribes after a BrokerError or one of the driver's exceptions listed in `errors`.

    `id` is random and names the listener's channel. `times` counts the subscriptions: a topic must be announced to the server again after
    each one, because wake-ups may have been lost. `waited` maps each topic to the number of tasks that are waiting for it.
    """

    def __init__(self, arm: Lookup, errors: tuple[type[Exception], ...]) -> None:
        self.id = secrets.token_hex(LISTENER_ID_BYTES)
        self.flag = WakeUpFlag()
        self.times = 0
        self.waited: dict[str, int] = {}
        self._arm = arm
        self._errors: tuple[type[Exception], ...] = (*errors, BrokerError)
        self._armed: set[str] = set()
        self._wanted: set[str] = set()
        self._was_nudged = False
        self._ended: dict[bytes, Record] = {}
        self._is_on = asyncio.Event()
        self._has_wants = asyncio.Event()
        self._running = [Duty(duty, is_needed=lambda: self.flag.is_heard) for duty in self._duties()]

    def listen(self, topics: Sequence[str]) -> Waiter:
        for duty in self._running:
            duty.start()
        return AnnouncedWaiter(self, topics)

    def want(self, topics: Iterable[str]) -> None:
        for topic in topics:
            if topic not in self._armed:
                self._wanted.add(topic)
                self._has_wants.set()

    def forget(self, topics: Iterable[str]) -> None:
        """Make the next wait announce these topics again, and drop the records kept for their jobs."""
        self._armed.difference_update(topics)
        for job_id in job_ids(topics):
            self._ended.pop(job_id, None)

    def state(self, topics: Iterable[str]) -> ListenerState:
        """Return the listener's state for a claim from the queues of these topics. A claim must follow, because `was_nudged` is reset."""
        was_nudged, self._was_nudged = self._was_nudged, False
        return ListenerState(not self._armed.isdisjoint(topics), was_nudged)

    def take_ended(self, job_id: bytes) -> Record | None:
        """Remove and return the record that arrived with the report of the job's end, or None if no record arrived."""
        return self._ended.pop(job_id, None)

    def armed(self, topics: Iterable[str], times: int) -> None:
        """Record that topics were announced during the subscription with the number `times`, unless it has been lost since."""
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
        """Return True while the listener is subscribed."""
        return self._is_on.is_set()

    async def close(self) -> None:
        await asyncio.gather(*(duty.end() for duty in self._running))

    def _duties(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Return the coroutine functions that run while the listener is open."""
        return [self._stay_subscribed, self._announce_topics]

    # --- the subscription ---------------------------------------------------------------------------------------

    @abstractmethod
    async def receive(self, on_subscribed: Callable[[], None]) -> None:
        """Subscribe, call `on_subscribed` once the subscription is in place, and
        pass each topic that arrives to `received`, until the connection breaks."""

    def stays_armed(self, topic: str) -> bool:
        """Return True if one announcement is enough for the server to keep sending the
        topic, even if something had already happened when the announcement arrived."""
        return False

    def received(self, topics: Iterable[str], *, disarms: bool) -> None:
        """Wake the waiters of these topics. `disarms` is True if the server sends each topic only once per announcement."""
        heard = set(topics)
        if disarms:
            self._armed -= heard
        for topic in heard:
            if topic == ANY_QUEUE or topic.startswith(QUEUE_PREFIX):
                self._was_nudged = True  # if no task waits for the job any more, upkeep nudges another listener
        self.flag.wake(heard)

    def received_ends(self, records: Mapping[bytes, Record | None]) -> None:
        """Wake the waiters of these jobs. Keep the records that arrived with the message for them, which saves the waiters a query."""
        for job_id, record in records.items():
            if record is not None and self.flag.hears(job_topic(job_id)):
                self._ended[job_id] = record
        self.received(map(job_topic, records), disarms=True)

    async def _stay_subscribed(self) -> None:
        retries = Retries(PAUSES, SYSTEM_RANDOM.random)
        while True:
            before = self.times
            try:
                await self.receive(self._on_subscribed)
            except self._errors:
                pass
            finally:
                self._is_on.clear()
                self._armed.clear()
            if self.times > before:
                retries.succeeded()
            await asyncio.sleep(retries.failed())

    def _on_subscribed(self) -> None:
        self.times += 1
        self._is_on.set()
        if self.times > 1:
            self.flag.wake_all()  # wake-ups may have been lost between the subscriptions

    # --- announcing topics ----------------------------------------------------------------------------------------

    async def _announce_topics(self) -> None:
        retries = Retries(PAUSES, SYSTEM_RANDOM.random)
        while True:
            await self._has_wants.wait()
            await self._is_on.wait()
            self._has_wants.clear()
            wanted, self._wanted = self._wanted, set()
            try:
                if wanted:
                    await self._announce(wanted)
            except BaseException as error:
                self._wanted |= wanted
                self._has_wants.set()
                if not isinstance(error, self._errors):
                    raise
                await asyncio.sleep(retries.failed())
            else:
                retries.succeeded()

    async def _announce(self, wanted: set[str]) -> None:
        times = self.times
        found = await look_for(wanted, self._arm)
        self.armed((topic for topic in wanted if topic not in found or self.stays_armed(topic)), times)
        self.flag.wake(found)


async def look_for(topics: Iterable[str], look: Lookup) -> set[str]:
    """Return the topics for which something has already happened."""
    ids, others = split_topics(set(topics))
    there, ended = await look(others, ids)
    return {*there, *map(job_topic, ended)}
