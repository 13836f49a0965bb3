"""Maintains the files through which senders find a listener: see wake_folder.py."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection
from typing import Final

from taskflow.broker.sqlite.wake_folder import ANY_TOPIC, BUSY, WAITING, Folder, ListenerNote, awaited_file, topic_hash
from taskflow.broker.topics import ANY_QUEUE, is_queue, split_topics
from taskflow.model.clock import Clock
from taskflow.model.ids import ID_BYTES

_TRIES: Final = 3
"""The number of attempts to rename or remove a note, which senders may be renaming at the same time."""


class ListenerFiles:
    """Writes the files of one listener, from one thread at a time. If that fails, no error is raised, but wake-ups arrive late."""

    def __init__(self, folder: Folder, namespace: str, name: str, clock: Clock) -> None:
        self.awaited = AwaitedIds(folder, awaited_file(name))
        self._folder = folder
        self._namespace = namespace
        self._name = name
        self._clock = clock
        self._topics = Counter[str]()
        self._note: ListenerNote | None = None

    def add(self, topics: Collection[str]) -> None:
        """Let senders know that someone is waiting for these topics."""
        jobs, others = split_topics(topics)
        for job_id in jobs:
            self.awaited.add(job_id)
        new = [topic for topic in others if topic not in self._topics]
        self._topics.update(others)
        if new:
            note = self._note
            self._turn(WAITING if note is None or any(map(is_queue, new)) else note.state)

    def drop(self, topics: Collection[str]) -> str | None:
        """Undo `add`. If the listener was nudged for jobs that no one is waiting for any more, return the hash of their topic."""
        jobs, others = split_topics(topics)
        for job_id in jobs:
            self.awaited.drop(job_id)
        self._topics.subtract(others)
        gone = [topic for topic in others if not self._topics[topic]]
        for topic in gone:
            del self._topics[topic]
        if not gone:
            return None
        actual = self._actual()
        unheeded = actual.nudged_for if actual is not None and not self._heeds(actual) else None
        if self._topics:
            self._turn(BUSY if unheeded or actual is None else actual.state)
        else:
            self._remove_note()
        return unheeded

    def claimed(self, *, is_full: bool) -> None:
        """Let senders know whether the listener is waiting for jobs.

        If this is called while the claim holds the write lock, no job can
        become ready unnoticed between the claim and the change of the note.
        """
        if not self._topics:
            return
        note, state = self._note, BUSY if is_full else WAITING
        if note is None or note.state != state or (not is_full and not self._folder.has(note.file)):
            self._turn(state)

    def wait(self) -> bool:
        """Mark the listener as waiting. Return False if it was marked as busy: it must then look for jobs that are already there."""
        if self._note is None or self._note.state != BUSY:
            return True
        self._turn(WAITING)
        return False

    def take(self, file: str) -> bool:
        """Accept a new name for the note, reported by a sender. Return False if it is a nudge for jobs that no one is waiting for."""
        note = ListenerNote.parse(file)
        with contextlib.suppress(OSError):
            if self._folder.has(file):
                self._note = note
        return note is not None and self._heeds(note)

    def _heeds(self, note: ListenerNote) -> bool:
        """Return True unless the note is a nudge for jobs that no one is waiting for."""
        hashed = note.nudged_for
        queues = filter(is_queue, self._topics)
        return hashed is None or any(topic == ANY_QUEUE or topic_hash(self._namespace, topic) == hashed for topic in queues)

    def heard(self, hashes: Collection[str]) -> list[str]:
        """Return the topics with these hashes that someone is waiting for."""
        topics = list(self._topics)
        return topics if ANY_TOPIC in hashes else [topic for topic in topics if topic_hash(self._namespace, topic) in hashes]

    def remove(self) -> None:
        self._topics.clear()
        self._remove_note()
        self.awaited.remove()

    def _turn(self, state: str) -> None:
        new = ListenerNote.new(state, self._clock.steady(), self._name, self._namespace, self._topics)
        for _ in range(_TRIES):
            old = self._note or self._actual()
            self._note = None
            try:
                if old is None:
                    os.close(self._folder.create(new.file))
                else:
                    self._folder.rename(old.file, new.file)
            except FileNotFoundError:
                continue
            except OSError:
                return
            self._note = new
            return

    def _actual(self) -> ListenerNote | None:
        """Return the current note, which a sender may have renamed."""
        with contextlib.suppress(OSError):
            if self._note is not None and self._folder.has(self._note.file):
                return self._note
        listeners = self._folder.listeners()
        return None if listeners is None else listeners.notes.get(self._name)

    def _remove_note(self) -> None:
        for _ in range(_TRIES):
            if (note := self._actual()) is None:
                break
            self._folder.remove_file(note.file)
        self._note = None


class AwaitedIds:
    """The file with the ids of the jobs whose end a listener is waiting
    for, each in a separate slot. An empty slot is filled with zeros."""

    def __init__(self, folder: Folder, file: str) -> None:
        self._folder = folder
        self._file = file
        self._descriptor: int | None = None
        self._counts = Counter[bytes]()
        self._slots: dict[bytes, int] = {}
        self._free = list[int]()

    def __contains__(self, job_id: bytes) -> bool:
        return job_id in self._counts

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, job_id: bytes) -> None:
        self._counts[job_id] += 1
        if self._counts[job_id] == 1:
            self._slots[job_id] = slot = self._free.pop() if self._free else len(self._slots)
            self._write(slot, job_id)

    def drop(self, job_id: bytes) -> None:
        self._counts[job_id] -= 1
        if not self._counts[job_id]:
            del self._counts[job_id]
            self._free.append(slot := self._slots.pop(job_id))
            self._write(slot, bytes(ID_BYTES))

    def remove(self) -> None:
        if self._descriptor is not None:
            self.abandon()
            self._folder.remove_file(self._file)

    def abandon(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, slot: int, job_id: bytes) -> None:
        with contextlib.suppress(OSError):
            if self._descriptor is None:
                self._descriptor = self._folder.create(self._file)
            os.pwrite(self._descriptor, job_id, slot * ID_BYTES)
