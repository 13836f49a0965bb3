"""A broker's connections, listener and notifier in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from taskflow.broker import topics as names
from taskflow.broker.postgres.connect.pool import ConnectionPool
from taskflow.broker.postgres.wakeups import EVERYTHING, PostgresListener
from taskflow.broker.tasks import Duty
from taskflow.model.errors import BrokerError

_JOB: Final = names.job(b"")

UNAWAITED_TIMEOUT: Final = 0.1
"""Seconds by which the announcement of a job's end is delayed if no waiter for it is known."""

READ_TIMEOUT: Final = 0.08
"""If a waiter's call to read a job takes at most this many seconds, the waiter is sure to
be registered before the job's end is announced. After a longer call, the waiter checks again."""

MIN_NOTIFY_INTERVAL: Final = 0.005
"""Minimum seconds between two notifications from one process. Each needs a lock for which all notifying processes compete."""

CLOSE_TIMEOUT: Final = 1.0
"""Seconds that the last notifications may take when the notifier is closed."""


class Notifier:
    """Notifies listeners of changes committed by this process. One call runs at a time; the next one sends everything
    that has accumulated by then.

    The end of a job without a known waiter is announced after a delay, because a waiter may be arriving at that very moment.
    """

    def __init__(self, notify: Callable[[Mapping[str, int], list[bytes]], Awaitable[Any]]) -> None:
        self._notify = notify
        self._topics = Counter[str]()
        self._ended: set[bytes] = set()
        self._unawaited: set[bytes] = set()
        self._is_urgent = asyncio.Event()
        self._is_closing = False
        self._sending = Duty(self._run, is_needed=lambda: self._has_some)

    def add(self, topics: Mapping[str, int]) -> None:
        """Add topics, each with its number of jobs. A topic with 0 jobs is sent only if it announces the end of a job."""
        for topic, number in topics.items():
            if topic.startswith(_JOB):
                self._ended.add(bytes.fromhex(topic.removeprefix(_JOB)))
            elif number:
                self._topics[topic] += number
        if self._topics or self._ended:
            self._go_on(is_urgent=True)

    def add_ended(self, ids: Iterable[bytes], *, are_awaited: bool) -> None:
        (self._ended if are_awaited else self._unawaited).update(ids)
        self._go_on(is_urgent=are_awaited)

    async def close(self) -> None:
        """Send the last notifications, for which other processes may be waiting. This also works at the end of asyncio.run(), which has
        cancelled the sending task by then."""
        self._is_closing = True
        self._is_urgent.set()
        await self._sending.end(within=CLOSE_TIMEOUT)
        if self._has_some:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._send(self._unawaited)

    @property
    def _has_some(self) -> bool:
        return bool(self._topics or self._ended or self._unawaited)

    def _go_on(self, *, is_urgent: bool) -> None:
        if is_urgent:
            self._is_urgent.set()
        if self._has_some:
            self._sending.start()

    async def _run(self) -> None:
        while self._has_some:
            unawaited, self._unawaited = self._unawaited, set()
            until = time.monotonic() + UNAWAITED_TIMEOUT
            try:
                while unawaited or self._topics or self._ended:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(max(0.0, until - time.monotonic()) if unawaited else None):
                            await self._is_urgent.wait()
                    self._is_urgent.clear()
                    is_time = self._is_closing or time.monotonic() >= until
                    await self._send(unawaited if is_time else set())
                    if is_time:
                        unawaited = set()
                    await asyncio.sleep(MIN_NOTIFY_INTERVAL)
            finally:  # also when it's cancelled
                self._unawaited |= unawaited

    async def _send(self, unawaited: set[bytes]) -> None:
        topics, self._topics = self._topics, Counter()
        ended, self._ended = self._ended, set()
        if not (topics or ended or unawaited):
            return
        try:
            await self._notify(topics, [*ended, *unawaited])
        except BrokerError:
            return  # a notification is only a hint: every waiter also polls
        except asyncio.CancelledError:
            self._topics.update(topics)
            self._ended |= ended | unawaited
            raise


CHECK_PAUSE: Final = 1.0
"""Seconds before each check of the marks. If all operations on a server are slow, more checks would not help."""


class LoopConnections:
    """A broker's connections, listener and notifier in one event loop. `look` checks the low-water marks (see low_water_marks.sql), and
    `forget` drops a listener's notes."""

    look: Callable[[], Awaitable[None]]
    forget: Callable[[str], Awaitable[Any]]

    def __init__(self, pool: ConnectionPool, listener: PostgresListener, notifier: Notifier) -> None:
        self._wants_look = False
        # asyncio.run() cancels this task when it ends, but runs the loop a little longer, so only `check_marks` starts it again
        self._looking = Duty(self._keep_looking, is_needed=lambda: False)
        self.pool = pool
        self.listener = listener
        self.notifier = notifier
        self.preparing = asyncio.Lock()
        self.turn = asyncio.Lock()  # operations that lock records run one at a time

    def notify(self, topics: Mapping[str, int]) -> None:
        """Wake listeners in this process, and notify those in other processes that have left a note about the topics."""
        if EVERYTHING in topics:
            self.listener.flag.wake_all()
        here = {topic for topic, number in topics.items() if number or topic != names.DUE}
        if any(topic.startswith("queue:") for topic in here):
            here.add(names.ANY_QUEUE)
        self.listener.flag.wake(here)
        self.notifier.add(topics)

    def check_marks(self) -> None:
        """Check the low-water marks after a moment, because a worker that has just started has more urgent queries."""
        self._wants_look = True
        self._looking.start()

    async def _keep_looking(self) -> None:
        while self._wants_look:
            await asyncio.sleep(CHECK_PAUSE)
            self._wants_look = False
            with contextlib.suppress(BrokerError):  # a later check, perhaps in another process, makes up for this one
                await self.look()

    async def close(self) -> None:
        await self._looking.end()
        await self.notifier.close()
        await self.listener.close()
        if self.listener.has_noted:
            with contextlib.suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self.forget(self.listener.id)
        await self.pool.close()
