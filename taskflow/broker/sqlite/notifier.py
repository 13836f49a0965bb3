"""Wakes listeners, those in this process directly and others by datagram. Ready jobs
wake as many listeners as there are jobs; the end of a job wakes those that await it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol

import msgspec

from taskflow.broker import topics
from taskflow.broker.engine import settle
from taskflow.broker.protocol import PASSED_ON_AFTER, UPKEEPERS
from taskflow.broker.sqlite.announcement import Announcement
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.broker.sqlite.wake_folder import ANY_TOPIC, BUSY, NUDGED, WAITING, Folder, ListenerNote, Listeners, awaited_file, topic_hash
from taskflow.model.clock import SYSTEM_RANDOM, Clock, to_microseconds
from taskflow.model.ids import ID_BYTES
from taskflow.model.record import Record

_PASSED_ON_AFTER: Final = to_microseconds(PASSED_ON_AFTER)

SMALL_RECORD: Final = 4096
"""The maximum size in bytes of an ended job's record that is sent with a message."""

_MOST_RECORDS: Final = 4
"""The maximum number of ended jobs in one commit whose records are sent. If
there are more, their waiters read the records themselves, several at a time."""

_MOST_BYTES: Final = 60_000
"""The maximum size of a datagram in bytes. Some systems accept no larger one."""


_MOST_QUEUES: Final = 100
"""The maximum number of queues that are searched for remaining jobs after a claim from all queues."""

_CLEAN_EVERY: Final = to_microseconds(5.0)


class WakeMessage(msgspec.Struct, array_like=True):
    """A message to a listener. If the message nudges it, `note` is the new name of its note file (see
    `wake_folder.ListenerNote`); otherwise `note` is empty. `topics` holds the hashes of the topics to wake,
    `ended` the ids of jobs that have ended, and `records` the records of some of those jobs.

    If a message is too long for a datagram, a short one is sent instead: `ANY_TOPIC` in `topics` means that anything may have happened.
    """

    note: str = ""
    topics: set[str] = set()
    ended: list[bytes] = []
    records: list[Record] = []


_ENCODER: Final = msgspec.msgpack.Encoder()
decode: Final = msgspec.msgpack.Decoder(WakeMessage).decode


class LocalListener(Protocol):
    """A listener in this process. It is called directly, because a datagram would wake its thread."""

    def awaits(self, ids: Iterable[bytes]) -> list[bytes]: ...

    def take(self, message: WakeMessage) -> bool: ...


_LOCAL_LISTENERS: Final[dict[tuple[int, str], LocalListener]] = {}
"""The listeners in this process by process id and name. A forked child
inherits the entries of its parent, which have another process id."""


def local_listener(name: str) -> LocalListener | None:
    return _LOCAL_LISTENERS.get((os.getpid(), name))


def add_local_listener(name: str, listener: LocalListener) -> None:
    _LOCAL_LISTENERS[os.getpid(), name] = listener


def remove_local_listener(name: str) -> None:
    _LOCAL_LISTENERS.pop((os.getpid(), name), None)


class SocketNotifier:
    """Sends wake-ups to the listeners of a store. Used by one thread at a time."""

    def __init__(self, store: StoreFile, clock: Clock) -> None:
        self.clock = clock
        self.folder = Folder(store)
        self._namespace = store.namespace
        self._cleaned_at = -_CLEAN_EVERY
        self._socket: socket.socket | None = None

    def announce(self, announcement: Announcement, store: SqliteStore) -> bool:
        """After a commit, wake the listeners that are waiting for one of its events. Return False if the listeners are unknown."""
        listeners = self.folder.listeners()
        if listeners is None:
            return False
        if not (announcement.is_for_noted or listeners.awaiting or (announcement.full_claims and listeners.are_waiting)):
            return True
        delivery = _Delivery(self, listeners, self._namespace)
        with contextlib.suppress(OSError, sqlite3.Error):  # a hint is not worth an error
            if announcement.is_periodical or announcement.ready:
                delivery.pass_on_late_nudges()
            for queue, number in announcement.ready.items():
                delivery.nudge_for(queue, number, store)
            for queues, number in announcement.full_claims.items() if listeners.are_waiting else ():
                delivery.nudge_next(queues, number, store)
            for topic in announcement.woken:
                delivery.notify_topic(topic)
            if announcement.is_due:
                delivery.notify_due()
            if announcement.ended:
                delivery.notify_ends(announcement.ended, store)
        delivery.send()
        self._clean(listeners, announcement)
        return True

    def pass_on(self, hashed: str) -> None:
        """Nudge another listener for the topic with this hash."""
        listeners = self.folder.listeners()
        if listeners is not None:
            delivery = _Delivery(self, listeners, self._namespace)
            delivery.nudge(hashed, 1)
            delivery.send()

    def send(self, name: str, message: WakeMessage) -> bool:
        """Send a message to a listener. Return False if the listener does not accept it."""
        if (listener := local_listener(name)) is not None:
            return listener.take(message)
        encoded = _ENCODER.encode(message)
        if len(encoded) > _MOST_BYTES:
            encoded = _ENCODER.encode(WakeMessage(message.note, {ANY_TOPIC}))
        try:
            self._opened().sendto(encoded, self.folder.address(name))
        except OSError as error:
            if error.errno in _GONE:
                self._remove(name)
            # Otherwise its queue is full, for example, because it is stopped or already awake.
            return False
        return True

    def _clean(self, listeners: Listeners, announcement: Announcement) -> None:
        """Remove the files of listeners whose processes ended without cleaning up."""
        names, now = listeners.without_note, self.clock.steady()
        if announcement.cleans and now - self._cleaned_at >= _CLEAN_EVERY:
            names, self._cleaned_at = listeners.names, now
        for name in names:
            if local_listener(name) is None:
                self._remove_if_gone(name)

    def _remove_if_gone(self, name: str) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(self.folder.address(name))
            except OSError as error:
                if error.errno in _GONE:
                    self._remove(name)

    def _remove(self, name: str) -> None:
        listeners = self.folder.listeners()
        for file in listeners.files_of(name) if listeners is not None else ():
            self.folder.remove_file(file)
        self.folder.remove(name)

    def _opened(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        return self._socket

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.folder.close()


_GONE: Final = (errno.ECONNREFUSED, errno.ENOENT)


class _Delivery:
    """Collects the messages of one announcement, one for each listener, and sends them."""

    def __init__(self, notifier: SocketNotifier, listeners: Listeners, namespace: str) -> None:
        self._notifier = notifier
        self._now = notifier.clock.steady()
        self._listeners = listeners
        self._namespace = namespace
        self._any_queue = topic_hash(namespace, topics.ANY_QUEUE)
        self._due = topic_hash(namespace, topics.DUE)
        self._notes = dict(listeners.notes)
        self._messages: dict[str, WakeMessage] = {}
        self._nudges: dict[str, list[str]] = {}

    # --- jobs ------------------------------------------------------------------------------------------------------

    def nudge_for(self, queue: str, number: int, store: SqliteStore) -> None:
        """Nudge a listener for each job that became ready, unless the queue is paused or others have already claimed the jobs."""
        hashed = topic_hash(self._namespace, topics.queue(queue))
        if any(self._waiting_for(hashed, WAITING + NUDGED)):
            self.nudge(hashed, min(number, store.ready_in(queue)))

    def nudge_next(self, queues: Sequence[str], number: int, store: SqliteStore) -> None:
        """Nudge one more listener for each claim that reached its limit and left jobs behind."""
        for queue in queues or store.first_ready_queues(_MOST_QUEUES):
            hashed = topic_hash(self._namespace, topics.queue(queue))
            if any(self._waiting_for(hashed, WAITING)):
                wanted = min(number, store.ready_in(queue))
                number -= wanted - self._nudge_waiting(hashed, wanted)

    def nudge(self, hashed: str, number: int) -> None:
        """Nudge the listeners that have waited longest. If there are too few, also repeat the
        message to those nudged before: they may have claimed just before the jobs became ready."""
        nudged = [*self._waiting_for(hashed, NUDGED)]
        left = self._nudge_waiting(hashed, number)
        for note in nudged[:left]:
            self._message(note.listener).topics |= {hashed, self._any_queue}

    def _nudge_waiting(self, hashed: str, number: int) -> int:
        """Nudge up to `number` waiting listeners. Return how many more were needed."""
        for note in [*self._waiting_for(hashed, WAITING)]:
            if number < 1:
                break
            number -= self._take(note, hashed)
        return number

    def pass_on_late_nudges(self) -> None:
        for note in [*self._notes.values()]:
            hashed = note.nudged_for
            if hashed is None or self._now - note.since_number < _PASSED_ON_AFTER:
                continue
            if any(self._waiting_for(hashed, WAITING)) and self._rename(note, note.turned(BUSY, self._now)):
                self.nudge(hashed, 1)

    def _waiting_for(self, hashed: str, states: str) -> Iterator[ListenerNote]:
        return (note for note in self._notes.values() if note.state[0] in states and (note.hears(hashed) or note.hears(self._any_queue)))

    def _take(self, note: ListenerNote, hashed: str) -> bool:
        nudged = note.turned(NUDGED + hashed, self._now)
        if not self._rename(note, nudged):
            return False
        message = self._message(note.listener)
        message.note = nudged.file
        message.topics |= {hashed, self._any_queue}
        self._nudges.setdefault(note.listener, []).append(hashed)
        return True

    def _rename(self, note: ListenerNote, new: ListenerNote) -> bool:
        """Rename a note. Return False if another sender or the listener itself was quicker."""
        try:
            self._notifier.folder.rename(note.file, new.file)
        except FileNotFoundError:
            del self._notes[note.listener]
            return False
        except OSError:  # another user's, in a folder where only the owner of a file may rename it
            pass
        self._notes[note.listener] = new
        return True

    # --- anything else ---------------------------------------------------------------------------------------------

    def notify_topic(self, topic: str) -> None:
        hashed = topic_hash(self._namespace, topic)
        for note in self._notes.values():
            if note.hears(hashed):
                self._message(note.listener).topics.add(hashed)

    def notify_due(self) -> None:
        """Tell a few listeners that upkeep may be due earlier."""
        listeners = [note.listener for note in self._notes.values() if note.hears(self._due)]
        for listener in SYSTEM_RANDOM.sample(listeners, min(UPKEEPERS, len(listeners))):
            self._message(listener).topics.add(self._due)

    def notify_ends(self, ended: set[bytes], store: SqliteStore) -> None:
        """Tell each listener which of the jobs it awaits have ended. If these are few, their small records are sent too."""
        awaited = {name: ids for name in self._listeners.awaiting if (ids := self._awaited(name, ended))}
        if not awaited:
            return
        wanted = set[bytes]().union(*awaited.values())
        records = _small_records(store, wanted) if len(wanted) <= _MOST_RECORDS else {}
        for name, ids in awaited.items():
            message = self._message(name)
            message.ended += ids
            size = sum(map(len, message.topics)) + len(ids) * (ID_BYTES + 2)
            for job_id in ids:
                if job_id in records:
                    record, length = records[job_id]
                    size += length
                    if size > _MOST_BYTES:
                        break
                    message.records.append(record)

    def _awaited(self, name: str, ended: set[bytes]) -> list[bytes]:
        if (listener := local_listener(name)) is not None:
            return listener.awaits(ended)
        awaited = self._notifier.folder.read(awaited_file(name))
        return list(ended.intersection(awaited[at : at + ID_BYTES] for at in range(0, len(awaited), ID_BYTES)))

    # --- sending ---------------------------------------------------------------------------------------------------

    def _message(self, listener: str) -> WakeMessage:
        return self._messages.setdefault(listener, WakeMessage())

    def send(self) -> None:
        while self._messages:
            listener, message = self._messages.popitem()
            nudges = self._nudges.pop(listener, [])
            with contextlib.suppress(OSError):
                if self._notifier.send(listener, message):
                    continue
            self._notes.pop(listener, None)
            for hashed in nudges:
                self.nudge(hashed, 1)
            if self._due in message.topics and (others := [note.listener for note in self._notes.values() if note.hears(self._due)]):
                self._message(SYSTEM_RANDOM.choice(others)).topics.add(self._due)


def _small_records(store: SqliteStore, ids: set[bytes]) -> dict[bytes, tuple[Record, int]]:
    """Return the small records of those jobs that have ended, each with its encoded size."""
    found: dict[bytes, tuple[Record, int]] = {}
    for record in store.drive(settle.read(list(ids))):
        if record is not None and record.status.is_ended and len(record.result or b"") <= SMALL_RECORD:
            length = len(_ENCODER.encode(record))
            if length <= SMALL_RECORD:
                found[record.id] = (record, length)
    return found
