"""Receives wake-ups from other processes. After a commit, a sender looks in the folder beside the file for the listeners to wake.

Alternatives were measured: polling `data_version` every 4 ms costs 4 % of a core, and inotify on the log fires before the commit is
visible. Other programs that write to the file send no datagram, so `data_version` is also checked once a second.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from taskflow.broker.sqlite.listener_files import ListenerFiles
from taskflow.broker.sqlite.notifier import SocketNotifier, WakeMessage, add_local_listener, decode, remove_local_listener
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.broker.sqlite.store_watch import StoreWatch
from taskflow.broker.sqlite.wake_folder import ANY_TOPIC, Folder, ListenerNote
from taskflow.broker.topics import is_queue, job as job_topic, job_ids, split_topics
from taskflow.broker.wakeups import Waiter, WakeUpFlag
from taskflow.model.clock import Seams
from taskflow.model.record import Record

POLL_EVERY: Final = 1.0
POLL_WITHOUT_SOCKETS_EVERY: Final = 0.05


class SocketWaiter(Waiter):
    """A waiter whose topics senders can see, from its creation until it is closed."""

    def __init__(self, listener: SocketListener, flag: WakeUpFlag, topics: Sequence[str]) -> None:
        super().__init__(flag, topics)
        self._listener = listener
        self._is_for_jobs = any(map(is_queue, topics))

    async def wait(self, timeout: float | None = None) -> bool:
        if self._is_for_jobs:
            self._listener.begin_waiting()
        return await super().wait(timeout)

    def close(self) -> None:
        super().close()
        self._listener.forget(self._topics)


class SocketListener:
    """Receives wake-ups for one broker in one process. Its thread runs while there are waiters.

    `name` is the name of its socket, or None while it has none.
    """

    def __init__(self, store: StoreFile, flag: WakeUpFlag, seams: Seams) -> None:
        self.name: str | None = None
        self._store = store
        self._flag = flag
        self._clock, self._start_thread = seams.clock, seams.start_thread
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._folder = Folder(store)
        self._files: ListenerFiles | None = None
        self._ended: dict[bytes, Record] = {}
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._stop = threading.Event()
        self._must_look = False

    def listen(self, topics: Sequence[str]) -> Waiter:
        """Listen to topics. The socket exists when this returns, so nothing is missed from then on."""
        with self._lock:
            waiter = SocketWaiter(self, self._flag, topics)
            if self._thread is None:
                self._socket = self._bind()
                self._stop.clear()
                self._thread = self._start_thread(self._work, "taskflow-sqlite-listener")
            if self._files is not None:
                self._files.add(topics)
            return waiter

    def _bind(self) -> socket.socket | None:
        """Bind the socket. If the file system does not support sockets, the store is checked more often instead."""
        name = f"{os.getpid()}-{os.urandom(6).hex()}"
        try:
            bound = self._folder.bind(name)
        except OSError:
            return None
        bound.settimeout(POLL_EVERY)
        self.name = name
        self._files = ListenerFiles(self._folder, self._store.namespace, name, self._clock)
        add_local_listener(name, self)
        return bound

    def begin_waiting(self) -> None:
        """Mark this listener as waiting. If it was marked as busy until now,
        make its thread check for jobs that became ready in the meantime."""
        if self._pid != os.getpid():  # a forked child; checked before the lock, which another thread may have held
            return
        with self._lock:
            if self._files is not None and not self._files.wait():
                self._must_look = True
                self._end_receive()

    def forget(self, topics: Sequence[str]) -> None:
        """Remove a waiter's topics. If this listener was nudged for jobs that no task is waiting for any more, nudge another listener."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._files is None:
                return
            unheeded = self._files.drop(topics)
            for job_id in job_ids(topics):
                if job_id not in self._files.awaited:
                    self._ended.pop(job_id, None)
        if unheeded is not None:
            self._pass_on(unheeded)

    def claimed(self, *, is_full: bool) -> None:
        """Record whether a claim reached its limit. Must be called within the claim's transaction."""
        with self._lock:
            if self._files is not None:
                self._files.claimed(is_full=is_full)

    def take_ended(self, job_id: bytes) -> Record | None:
        """Remove and return the record of an ended job that arrived with a wake-up, if there is one."""
        return self._ended.pop(job_id, None)

    # --- what senders tell -----------------------------------------------------------------------------------------

    def awaits(self, ids: Iterable[bytes]) -> list[bytes]:
        with self._lock:
            return [] if self._files is None else [job_id for job_id in ids if job_id in self._files.awaited]

    def take(self, message: WakeMessage) -> bool:
        """Wake the waiters for the events in a message. Return False if it is a nudge for jobs that no one is waiting for any more."""
        with self._lock:
            if self._files is None:
                return not message.note
            is_heeded = not message.note or self._files.take(message.note)
            heard = self._files.heard(message.topics)
            for record in message.records:
                if record.id in self._files.awaited:
                    self._ended[record.id] = record
        if ANY_TOPIC in message.topics:
            self._flag.wake_all()
        else:
            self._flag.wake([*heard, *map(job_topic, message.ended)])
        return is_heeded

    def _pass_on(self, hashed: str) -> None:
        notifier = SocketNotifier(self._store, self._clock)
        try:
            notifier.pass_on(hashed)
        finally:
            notifier.close()

    # --- the thread ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        watch = StoreWatch(self._store)
        try:
            polled_at = time.monotonic()
            while not self._stop.is_set():
                self._receive()
                is_time = time.monotonic() - polled_at >= (POLL_EVERY if self._socket else POLL_WITHOUT_SOCKETS_EVERY)
                if is_time or self._must_look:
                    if_changed, self._must_look = not self._must_look, False
                    jobs, topics = split_topics(self._flag.topics())
                    self._flag.wake(watch.look(topics, jobs, if_changed=if_changed))
                if is_time:
                    polled_at = time.monotonic()
                    if self._is_done():
                        return
        finally:
            watch.close()

    def _receive(self) -> None:
        if self._socket is None:
            self._stop.wait(POLL_WITHOUT_SOCKETS_EVERY)
            return
        try:
            encoded = self._socket.recv(1 << 17)
        except OSError:  # nothing arrived in that time
            return
        if not encoded:
            return
        try:
            message = decode(encoded)
        except msgspec.MsgspecError:  # not from this version of taskflow
            self._must_look = True
            return
        if not self.take(message) and (note := ListenerNote.parse(message.note)) is not None and note.nudged_for is not None:
            self._pass_on(note.nudged_for)

    def _is_done(self) -> bool:
        """If there are no waiters any more, release the socket and the files, and return True. The next waiter starts another thread."""
        with self._lock:
            if self._flag.is_heard:
                if self._files is not None and not self._files.awaited:
                    self._files.awaited.remove()
                return False
            self._thread = None
            self._release()
            return True

    def close(self) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
            self._end_receive()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5)
        with self._lock:
            self._release()
        self._folder.close()

    def _end_receive(self) -> None:
        """End the wait for a datagram by sending one, because neither closing nor shutting down the socket ends it."""
        if self.name is not None:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(b"", self._folder.address(self.name))

    def abandon(self) -> None:
        """Close the descriptors that a forked child has inherited. The socket and the files belong to the parent, and stay."""
        if self._socket is not None:
            self._socket.close()
        if self._files is not None:
            self._files.awaited.abandon()
        self._folder.close()

    def _release(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._files is not None:
            self._files.remove()
            self._files = None
        if self.name is not None:
            remove_local_listener(self.name)
            self._folder.remove(self.name)
            self.name = None
        self._ended.clear()
