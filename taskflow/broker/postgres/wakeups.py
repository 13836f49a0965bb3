"""LISTEN and NOTIFY: one listening connection for each event loop, and notifications of committed changes.

A pooler in transaction mode accepts a LISTEN and loses every notification. So a listener counts as open only after it has received one of
its test notifications. Until then it polls once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Final, Self

import asyncpg

from taskflow.broker import topics as names
from taskflow.broker.listener import Listener, Lookup, look_for
from taskflow.broker.postgres.connect.link import Link
from taskflow.broker.postgres.connect.server import ANSWER_WITHIN, PostgresTarget, drop, shown
from taskflow.broker.postgres.refusals import ERRORS
from taskflow.model.errors import BrokerError

log: Final = logging.getLogger("taskflow")

EVERYTHING: Final = "*"
"""Replaces a notification that is too long: every waiter checks."""

UNAWAITED_WITHIN: Final = 0.05
"""Seconds until the ends of jobs are announced for which no waiter was known."""

LOOK_EVERY: Final = 40.0
"""Seconds after which a silent connection is tested. Meanwhile, the answers to heartbeats tell an idle worker of new jobs."""

AT_MOST_EVERY: Final = 0.005
"""Minimum seconds between two notifications of a busy process. Each takes a lock that all notifying processes share."""

LAST_WORDS: Final = 1.0
"""Seconds for the last notifications when the loop ends."""

HEARD_WITHIN: Final = 2.0
"""Seconds that a notification may take to arrive. Usually it takes a millisecond."""

TESTS: Final = 2
"""The number of consecutive test notifications that must be lost before notifications count as lost, and not merely late."""

TEST_AGAIN: Final = 30.0
"""Seconds after which a route that loses notifications is tried again."""

POLL_EVERY: Final = 1.0
"""Seconds between two polls while notifications do not arrive."""

MISSES: Final = 2
"""Failed attempts to listen, at a server that otherwise answers, before a warning."""

_JOB: Final = names.job(b"")
_SESSION: Final = names.session(b"")

_TEST: Final = "test:"
"""The prefix of a test message. No topic begins with it, so no process of any version waits for it."""

_SAY: Final = "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)"


class PostgresListener(Listener):
    """Listens for notifications. While they do not arrive, it polls for all waiters in one query and wakes those that have something to do.

    A session's own topic is not polled, because the next heartbeat brings its news.
    """

    def __init__(self, link: Link, channel: str, arm: Lookup, look: Lookup) -> None:
        super().__init__(arm, ERRORS)
        self._link = link
        self._channel = channel
        self._look = look
        self._is_off = asyncio.Event()
        self._is_off.set()
        self._has_looked = False
        self._misses = 0
        self._trouble: str | None = None
        self._has_said = False

    async def hear(self, goes_on: Callable[[], None]) -> None:
        # The time of the last answered poll: if the whole server is away, the listener is not the problem.
        server_is_there = self._has_looked
        try:
            async with ListenConnection(self._link, self._channel, self._take) as listener:
                if await listener.hears():
                    self._hears_again()
                    goes_on()
                    await listener.stay()
                    return
        except self._errors as error:
            self._misses += server_is_there
            if self._misses >= MISSES:
                self._trouble = in_vain(self._link.server, error)
            raise
        finally:
            self._is_off.set()
        self._trouble = deaf(self._link.server)
        await asyncio.sleep(_about(TEST_AGAIN))

    def stays_armed(self, topic: str) -> bool:
        """Return True if the server announces the topic without a request. The end of a job is announced only if a waiter asked for it."""
        return not topic.startswith(_JOB)

    def _duties(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        return [*super()._duties(), self._keep_polling]

    def _take(self, words: str) -> None:
        if words == EVERYTHING:
            self.flag.wake_all()
            return
        topics = words.split("\n")
        self.told((topic for topic in topics if topic.startswith(_JOB)), disarms=True)
        self.told((topic for topic in topics if not topic.startswith(_JOB)), disarms=False)

    def _hears_again(self) -> None:
        self._is_off.clear()
        if self._has_said:
            log.info("PostgreSQL at %s: notifications arrive again; polling has stopped", self._link.server)
        self._has_looked, self._misses, self._trouble, self._has_said = False, 0, None, False

    # --- instead of hearing ---------------------------------------------------------------------------------------

    async def _keep_polling(self) -> None:
        while True:
            await self._is_off.wait()
            await asyncio.sleep(_about(POLL_EVERY))
            topics = [topic for topic in self.waited if not topic.startswith(_SESSION)]
            if topics and not self.is_on:
                await self._poll(topics)

    async def _poll(self, topics: list[str]) -> None:
        try:
            self.flag.wake(await look_for(topics, self._look))
        except self._errors:
            self._has_looked, self._misses = False, 0
            return
        self._has_looked = True
        if self._trouble is not None and not self._has_said:
            self._has_said = True
            log.warning(self._trouble)


class ListenConnection:
    """Listens on a connection inside the block. Passes the message of each notification to `take`, except its own test messages."""

    def __init__(self, link: Link, channel: str, take: Callable[[str], None]) -> None:
        self._link = link
        self._channel = channel
        self._take = take
        self._test = f"{_TEST}{secrets.token_hex(8)}"
        self._has_heard = False
        self._is_cut = False
        self._stirs = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._connection: asyncpg.Connection = await self._link.open(for_listening=True)
        try:
            self._connection.add_termination_listener(self._cut)
            async with asyncio.timeout(ANSWER_WITHIN):
                await self._connection.add_listener(self._channel, self._heard)
        except BaseException:
            drop(self._connection)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and not self._has_heard:  # behind a pooler, another program's connection would keep listening
                with contextlib.suppress(*ERRORS):
                    async with asyncio.timeout(1.0):
                        await self._connection.remove_listener(self._channel, self._heard)
        finally:
            drop(self._connection)

    async def hears(self, *, tests: int = TESTS) -> bool:
        """Send a notification to itself on the usual route. Return True if it arrived. Raises OSError if the connection breaks."""
        for _ in range(tests):
            await self._link.fetch(_SAY, self._channel, self._test)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARD_WITHIN):
                    await self._stirs.wait()
                break
        if self._is_cut:
            raise ConnectionError("the listening connection was cut")
        return self._has_heard

    async def stay(self) -> None:
        """Listen until the connection breaks or does not answer."""
        while not self._is_cut:
            self._stirs.clear()
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    await self._stirs.wait()
            except TimeoutError:
                try:
                    await self._connection.execute("SELECT 1", timeout=3.0)
                except ERRORS:
                    return

    def _heard(self, connection: object, pid: int, channel: str, payload: object) -> None:
        words = str(payload)
        if words == self._test:
            self._has_heard = True
            self._stirs.set()
        else:
            self._take(words)

    def _cut(self, connection: object) -> None:
        self._is_cut = True
        self._stirs.set()


async def trouble_with_listening(link: Link, channel: str) -> str | None:
    """Return a message about the problem, or None if notifications on this channel arrive here."""
    try:
        async with ListenConnection(link, channel, lambda words: None) as listener:
            return None if await listener.hears(tests=1) else deaf(link.server)
    except (*ERRORS, BrokerError) as error:
        return in_vain(link.server, error)


def deaf(server: PostgresTarget) -> str:
    if server.listen_at:
        return (
            f"PostgreSQL at {shown(server.listen_at)} (listen= in the broker URL) gets no notifications sent at {server}: {_POLLED}. "
            "It must be the same database, without a pooler in between"
        )
    return (
        f"PostgreSQL at {server} loses notifications without an error, like a pooler in transaction mode (pgbouncer): {_POLLED}. "
        "Name the server itself in the broker URL, for the listening connection: listen=host:5432"
    )


def in_vain(server: PostgresTarget, error: Exception) -> str:
    option = " (listen= in the broker URL)" if server.listen_at else ""
    return (
        f"PostgreSQL at {shown(server.listening_places)}{option} accepts no listening connection, although {server} answers: {_POLLED}. "
        f"It says: {str(error) or type(error).__name__}"
    )


_POLLED: Final = f"workers poll every {POLL_EVERY:g} s instead, and jobs start that much later"


def _about(seconds: float) -> float:
    """Return a pause of about this length, so that workers that started together do not poll together."""
    return seconds * (0.75 + 0.5 * random.random())


class Notifier:
    """Notifies other processes of committed changes: one notification at a time, with all topics that gathered meanwhile.

    The ends of jobs without a known waiter are announced later, for waiters that arrived at that moment.
    """

    def __init__(self, tell: Callable[[list[str], list[bytes]], Awaitable[Any]]) -> None:
        self._tell = tell
        self._topics: set[str] = set()
        self._ended: set[bytes] = set()
        self._is_urgent = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, topics: Iterable[str]) -> None:
        for topic in topics:
            if topic.startswith(_JOB):
                self._ended.add(bytes.fromhex(topic.removeprefix(_JOB)))
            else:
                self._topics.add(topic)
        self._go_on(is_urgent=True)

    def add_ended(self, ids: Iterable[bytes], *, are_awaited: bool) -> None:
        self._ended.update(ids)
        self._go_on(is_urgent=are_awaited)

    async def close(self) -> None:
        """Send the last notifications, because other processes would wait for them. Also works at the end of asyncio.run(), which has
        cancelled the task by then.
        """
        if self._task is not None:
            self._is_urgent.set()
            await asyncio.wait([self._task], timeout=LAST_WORDS)
            self._task.cancel()
        if self._topics or self._ended:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    await self._tell_all()

    def _go_on(self, *, is_urgent: bool) -> None:
        if is_urgent:
            self._is_urgent.set()
        if (self._topics or self._ended) and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._topics or self._ended:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UNAWAITED_WITHIN):
                    await self._is_urgent.wait()
            self._is_urgent.clear()
            await self._tell_all()
            await asyncio.sleep(AT_MOST_EVERY)

    async def _tell_all(self) -> None:
        topics, self._topics = self._topics, set()
        ended, self._ended = self._ended, set()
        try:
            await self._tell(list(topics), list(ended))
        except BrokerError:
            return  # a notification is only a hint, because every waiter also polls
        except asyncio.CancelledError:
            self._topics |= topics
            self._ended |= ended
            raise
