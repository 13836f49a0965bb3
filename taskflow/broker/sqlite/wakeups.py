"""Receives wake-ups from other processes, by datagrams to a socket in the folder beside the file: see wake_folder.py.

Alternatives were measured: polling `data_version` every 4 ms costs 4 % of a core, and inotify on the log fires before the commit is
visible. A datagram may be lost, and other programs that write to the file send none, so `data_version` is also checked once a second."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from taskflow.broker.sqlite.counts import READY_IN
from taskflow.broker.sqlite.statements import Statements, filled_up
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.broker.sqlite.tables import BY_INDEX
from taskflow.broker.sqlite.wake_folder import Folder, topics_file
from taskflow.broker.topics import ANY_QUEUE, DUE, QUEUE_PREFIX, SESSION_PREFIX, is_queue, job as job_topic, split_topics
from taskflow.broker.wakeups import Waiter, WakeUpFlag
from taskflow.model.clock import StartThread

ANYTHING: Final = "*"
"""Replaces the topics of a message that would be too long for a datagram. It means that anything may have happened."""

POLL_INTERVAL: Final = 1.0
POLL_WITHOUT_SOCKETS_INTERVAL: Final = 0.05


class SocketWaiter(Waiter):
    """A waiter whose topics senders can see, from its creation until it is closed."""

    def __init__(self, listener: SocketListener, flag: WakeUpFlag, topics: Sequence[str]) -> None:
        super().__init__(flag, topics)
        self._listener = listener
        self._is_for_jobs = any(map(is_queue, topics))

    async def wait(self, timeout: float | None = None) -> bool:
        if self._is_for_jobs and not self._is_nudged:
            self._listener.begin_waiting()
        return await super().wait(timeout)

    def close(self) -> None:
        super().close()
        self._listener.drop(self._topics)


class SocketListener:
    """Receives wake-ups for one broker in one process. Its thread runs while there are waiters.

    `name` is the name of its socket, or None while it has none. Without a socket, it checks the store more often instead.
    """

    def __init__(self, store: StoreFile, flag: WakeUpFlag, start_thread: StartThread) -> None:
        self.name: str | None = None
        self._store = store
        self._flag = flag
        self._start_thread = start_thread
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._folder = Folder(store)
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._stop = threading.Event()
        self._must_look = False
        self._topics = Counter[str]()
        self._topics_file: str | None = None
        self._waiting_file: str | None = None
        self._awaited = 0
        self._awaited_file: str | None = None

    # --- for waiters and claims --------------------------------------------------------------------------------------

    def listen(self, topics: Sequence[str]) -> Waiter:
        """Return a waiter for these topics. If a socket can be bound, it exists by then, so no wake-up is missed from then on."""
        with self._lock:
            waiter = SocketWaiter(self, self._flag, topics)
            if self._thread is None:
                self._bind()
                self._stop.clear()
                self._thread = self._start_thread(self._work, "taskflow-sqlite-listener")
            jobs, others = split_topics(topics)
            self._awaited += len(jobs)
            self._show_awaited()
            new = [topic for topic in others if topic not in self._topics]
            self._topics.update(others)
            if new:
                self._show_topics()
            if any(map(is_queue, new)):
                self._show_waiting()
            return waiter

    def drop(self, topics: Sequence[str]) -> None:
        """Stop listening to the topics of a waiter that was closed."""
        if self._pid != os.getpid():  # a forked child; checked before the lock, which another thread may have held
            return
        with self._lock:
            jobs, others = split_topics(topics)
            self._awaited -= len(jobs)
            self._topics.subtract(others)
            if any(not self._topics[topic] for topic in others):
                self._topics = +self._topics
                self._show_topics()
                if not any(map(is_queue, self._topics)):
                    self._hide_waiting()

    def begin_waiting(self) -> None:
        """Show senders that this listener waits for jobs. If senders didn't know this yet, also check for jobs that already exist."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if self.name is not None and self._waiting_file is None:
                self._show_waiting()
                self._must_look = True
                self._end_receive()

    def claimed(self, *, is_full: bool) -> None:
        """After a claim, show senders whether this listener waits for jobs. Called while the claim still holds the write lock, so that no
        job can become ready unnoticed."""
        with self._lock:
            if is_full:
                self._hide_waiting()
            elif any(map(is_queue, self._topics)):
                self._show_waiting()

    # --- the files ---------------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        with contextlib.suppress(OSError):
            self.name, self._socket = self._folder.bind()
            self._socket.settimeout(POLL_INTERVAL)

    def _bind_again(self) -> None:
        """Bind another socket if there is none, or if another process has removed it, perhaps with its folder."""
        if self.name is not None and self._folder.has(self.name):
            return
        self._unbind()
        self._bind()
        if self.name is None:
            return
        self._show_topics()
        self._show_awaited()
        if any(map(is_queue, self._topics)):
            self._show_waiting()
        self._must_look = True

    def _unbind(self) -> None:
        self._hide_waiting()
        self._hide_awaited()
        if self._topics_file is not None:
            self._folder.remove(self._topics_file)
        if self._socket is not None:
            self._socket.close()
            self._folder.forget(self.name or "")
        self._socket = self.name = self._topics_file = None

    def _show_topics(self) -> None:
        before, file = self._topics_file, topics_file(self.name, self._topics) if self.name is not None and self._topics else None
        if file == before:
            return
        try:
            if file is not None:
                self._folder.create(file)
        except OSError:  # perhaps the disk is full: the previous file remains, and the thread tries again
            return
        self._topics_file = file
        if before is not None:
            self._folder.remove(before)

    def _show_waiting(self) -> None:
        with contextlib.suppress(OSError):
            if self.name is not None and (self._waiting_file is None or not self._folder.has(self._waiting_file)):
                self._waiting_file = f"{time.monotonic_ns():016x}.{self.name}"
                self._folder.create(self._waiting_file)

    def _hide_waiting(self) -> None:
        file, self._waiting_file = self._waiting_file, None
        if file is not None:
            self._folder.remove(file)

    def _show_awaited(self) -> None:
        if self._awaited and self._awaited_file is None and self.name is not None:
            with contextlib.suppress(OSError):
                self._folder.create(f"{self.name}.j")
                self._awaited_file = f"{self.name}.j"

    def _hide_awaited(self) -> None:
        file, self._awaited_file = self._awaited_file, None
        if file is not None:
            self._folder.remove(file)

    # --- messages from senders ---------------------------------------------------------------------------------------

    @property
    def is_heard(self) -> bool:
        return self._flag.is_heard

    def received(self, topics: Iterable[str]) -> None:
        """Wake the waiters of these topics, or every waiter if `ANYTHING` is among them."""
        heard = [*topics]
        if any(map(is_queue, heard)):
            with self._lock:  # the sender has removed our file, but a claim may be creating another, or have done so
                if self._waiting_file is not None and not self._folder.has(self._waiting_file):
                    self._waiting_file = None
        if ANYTHING in heard:
            self._flag.wake_all()
        else:
            self._flag.wake(heard)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        watch = StoreWatch(self._store)
        try:
            polled_at = time.monotonic()
            while not self._stop.is_set():
                self._receive()
                is_time = time.monotonic() - polled_at >= (POLL_INTERVAL if self._socket else POLL_WITHOUT_SOCKETS_INTERVAL)
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
            self._stop.wait(POLL_WITHOUT_SOCKETS_INTERVAL)
            return
        try:
            message = self._socket.recv(1 << 17)
        except OSError:  # nothing arrived within the socket's timeout
            return
        self.received(message.decode(errors="replace").split("\n"))

    def _is_done(self) -> bool:
        """If no waiters are left, release the socket and the files, and return True. The next waiter starts another thread."""
        with self._lock:
            if self._flag.is_heard:
                self._bind_again()
                self._show_topics()
                if not self._awaited:
                    self._hide_awaited()
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
        """End the wait for a datagram by sending one, because neither closing nor shutting down the socket ends the wait."""
        if self.name is not None:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(b"", self._folder.address(self.name))

    def abandon(self) -> None:
        """Close the descriptors that a forked child has inherited. The socket and the files belong to the parent, and remain."""
        if self._socket is not None:
            self._socket.close()
        self._folder.close()

    def _release(self) -> None:
        self._topics.clear()
        self._awaited = 0
        self._unbind()


_ENDED: Final = """\
WITH asked (id) AS (VALUES (?) ...)
SELECT asked.id FROM asked WHERE asked.id IS NOT NULL AND coalesce((SELECT status FROM "~jobs" AS j WHERE j.id = asked.id), 7) > 3"""

_ANY_READY: Final = """\
SELECT 1 FROM "~counted" AS c INDEXED BY "~counted_ready"
WHERE what = '=2' AND n > 0 AND NOT EXISTS (SELECT 1 FROM "~queues" WHERE id = CAST(c.queue AS BLOB)) LIMIT 1"""

_STOPPING: Final = """\
SELECT 1 FROM "~jobs" INDEXED BY "~jobs_marked" WHERE (status = 3 AND flags & 16 <> 0) AND session = ? LIMIT 1"""

_NEXT_DUE: Final = f"""\
SELECT min(at) FROM (
  SELECT min(due_at) AS at FROM "~jobs" INDEXED BY "~jobs_due" WHERE {BY_INDEX["due"].when}
  UNION ALL
  SELECT min(due_at) FROM "~jobs" INDEXED BY "~jobs_to_admit" WHERE {BY_INDEX["to_admit"].when}
  UNION ALL
  SELECT min(offer_at) FROM "~schedules" WHERE offer_at IS NOT NULL
)"""


class StoreWatch:
    """Looks for unannounced events over a separate connection that it uses only for reading. Used only by the listener's thread."""

    def __init__(self, store: StoreFile) -> None:
        self._store = store
        self._sql = Statements(store.namespace)
        self._identity: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        self._version: int | None = None
        self._next_due: int | None = None

    def look(self, topics: Sequence[str], jobs: Sequence[bytes], *, if_changed: bool) -> set[str]:
        """Check `topics` and the topics of `jobs`, and return those for which something has happened.
        Return an empty set if `if_changed` is True and the file has not changed since the last check, or if it can't be read."""
        try:
            return self._look(topics, jobs, if_changed)
        except sqlite3.Error:
            self.close()
            return set()

    def _look(self, topics: Sequence[str], jobs: Sequence[bytes], if_changed: bool) -> set[str]:
        connection = self._opened()
        [(version,)] = connection.execute("PRAGMA data_version")
        if if_changed and version == self._version:
            return set()
        self._version = version
        found = {topic for topic in topics if self._has_happened(connection, topic)}
        for size, values in filled_up([(job_id,) for job_id in jobs]):
            found.update(job_topic(job_id) for (job_id,) in connection.execute(self._sql.of_rows(_ENDED, size), values))
        return found

    def _has_happened(self, connection: sqlite3.Connection, topic: str) -> bool:
        if topic == DUE:
            return self._is_due_earlier(connection)
        if topic == ANY_QUEUE:
            text, values = _ANY_READY, list[str | bytes]()
        elif topic.startswith(QUEUE_PREFIX):
            text, values = READY_IN, [topic.removeprefix(QUEUE_PREFIX)]
        else:
            text, values = _STOPPING, [bytes.fromhex(topic.removeprefix(SESSION_PREFIX))]
        return connection.execute(self._sql[text], values).fetchone() is not None

    def _is_due_earlier(self, connection: sqlite3.Connection) -> bool:
        """Return True if the next due time is earlier than at the last check, or if there was none then."""
        before = self._next_due
        [(self._next_due,)] = connection.execute(self._sql[_NEXT_DUE])
        return self._next_due is not None and (before is None or self._next_due < before)

    def _opened(self) -> sqlite3.Connection:
        identity = self._store.identity()
        if self._connection is None or identity != self._identity:
            self.close()
            self._identity = identity
            self._connection = sqlite3.connect(self._store.uri("rw"), uri=True, timeout=0, isolation_level=None)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = self._version = None
