"""Wakes the listeners of a store, after commits."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
from collections.abc import Sequence
from typing import Final

from taskflow.broker import topics
from taskflow.broker.protocol import MAX_NUDGED_WHEN_DUE
from taskflow.broker.sqlite.counts import Announcement
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.broker.sqlite.wake_folder import GONE, Folder, Listeners
from taskflow.broker.sqlite.wakeups import ANYTHING, SocketListener
from taskflow.model.clock import SYSTEM_RANDOM

_MAX_MESSAGE_BYTES: Final = 60_000
"""The maximum size of a datagram. Some systems accept no larger one."""

_MAX_QUEUES: Final = 100
"""The maximum number of queues that are searched for remaining jobs after a claim from all queues."""


class Notifier:
    """Wakes listeners after commits: `own`, that of this process, directly, and others by datagrams. Used by one thread at a time."""

    def __init__(self, store: StoreFile, own: SocketListener) -> None:
        self._folder = Folder(store)
        self._own = own
        self._socket: socket.socket | None = None

    def announce(self, news: Announcement, store: SqliteStore) -> None:
        """Wake the listeners that wait for one of these events. Wake-ups are hints, so failures are ignored."""
        listeners = self._folder.listeners()
        if self._own.is_heard and (self._own.name is None or not listeners.names):
            self._own.received(news.topics())
        if listeners.names:
            with contextlib.suppress(OSError, sqlite3.Error):
                self._announce(news, store, listeners)

    def _announce(self, news: Announcement, store: SqliteStore, listeners: Listeners) -> None:
        waiting = [*listeners.waiting] if news.ready or news.full_claims else []
        for queue, number in news.ready.items():
            self._nudge(queue, number, waiting, listeners, store)
        for queues, number in news.full_claims.items() if waiting else ():
            for queue in queues or store.first_ready_queues(_MAX_QUEUES):
                number -= self._nudge(queue, number, waiting, listeners, store)
        if news.ended and listeners.awaiting:
            ended = [*map(topics.job, news.ended)]
            for name in listeners.awaiting:
                self._send(name, ended)
        for topic in news.woken:
            for name in listeners.names:
                if listeners.hears(name, topic):
                    self._send(name, [topic])
        if news.is_due:
            nudged = 0
            for name in SYSTEM_RANDOM.sample(sorted(listeners.names), len(listeners.names)):
                if nudged < MAX_NUDGED_WHEN_DUE and listeners.hears(name, topics.DUE):
                    nudged += self._send(name, [topics.DUE])

    def _nudge(self, queue: str, number: int, waiting: list[tuple[str, str]], listeners: Listeners, store: SqliteStore) -> int:
        """Nudge listeners that wait for this queue: one per READY job, at most `number`, none if the queue is paused. Return how many."""
        nudge, nudged = [topics.queue(queue), topics.ANY_QUEUE], 0
        hearing = [each for each in waiting if listeners.hears(each[1], *nudge)]
        number = min(number, store.ready_in(queue)) if hearing else 0
        for file, name in hearing:
            if nudged >= number:
                break
            waiting.remove((file, name))
            nudged += self._folder.remove(file) and self._send(name, nudge)
        return nudged

    def _send(self, name: str, heard: Sequence[str]) -> bool:
        """Send topics to a listener. Return False if it does not accept them: it is gone, or its queue of messages is full."""
        if name == self._own.name:
            self._own.received(heard)
            return True
        message = "\n".join(heard).encode(errors="replace")
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        try:
            self._socket.sendto(message if len(message) <= _MAX_MESSAGE_BYTES else ANYTHING.encode(), self._folder.address(name))
        except OSError as error:
            if error.errno in GONE:
                self._folder.forget(name)
            return False
        return True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._folder.close()
