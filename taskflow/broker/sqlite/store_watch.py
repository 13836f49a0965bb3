"""Polls the store for events that no wake-up has announced: a wake-up may be lost, and other programs that write to the file send none."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from taskflow.broker.sqlite.counts import READY_IN
from taskflow.broker.sqlite.statements import Statements, filled_up
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.broker.topics import ANY_QUEUE, DUE, QUEUE_PREFIX, SESSION_PREFIX, job as job_topic

_ENDED: Final = """\
WITH asked (id) AS (VALUES (?) ...)
SELECT asked.id FROM asked WHERE asked.id IS NOT NULL AND coalesce((SELECT status FROM "~jobs" AS j WHERE j.id = asked.id), 7) > 3"""

_ANY_READY: Final = """\
SELECT 1 FROM "~counted" AS c INDEXED BY "~counted_ready"
WHERE what = '=2' AND n > 0 AND NOT EXISTS (SELECT 1 FROM "~queues" WHERE id = CAST(c.queue AS BLOB)) LIMIT 1"""

_STOPPING: Final = """\
SELECT 1 FROM "~jobs" INDEXED BY "~jobs_marked" WHERE (status = 3 AND flags & 16 <> 0) AND session = ? LIMIT 1"""

_NEXT_DUE: Final = """\
SELECT min(at) FROM (
  SELECT min(due_at) AS at FROM "~jobs" INDEXED BY "~jobs_due" WHERE (status = 1 OR status = 0 AND awaits <= 0 AND flags & 256 = 0)
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
        If `if_changed` is True, return none unless the file has changed since the last check."""
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
        found = {*self._queues(connection, topics), *self._sessions(connection, topics)}
        for size, values in filled_up([(job_id,) for job_id in jobs]):
            found.update(job_topic(job_id) for (job_id,) in connection.execute(self._sql.of_rows(_ENDED, size), values))
        if DUE in topics and self._is_due_earlier(connection):
            found.add(DUE)
        return found

    def _queues(self, connection: sqlite3.Connection, topics: Sequence[str]) -> set[str]:
        found = {
            topic
            for topic in topics
            if topic.startswith(QUEUE_PREFIX) and connection.execute(self._sql[READY_IN], (topic.removeprefix(QUEUE_PREFIX),)).fetchone()
        }
        if ANY_QUEUE in topics and connection.execute(self._sql[_ANY_READY]).fetchone():
            found.add(ANY_QUEUE)
        return found

    def _sessions(self, connection: sqlite3.Connection, topics: Iterable[str]) -> set[str]:
        sessions = {topic: bytes.fromhex(topic.removeprefix(SESSION_PREFIX)) for topic in topics if topic.startswith(SESSION_PREFIX)}
        return {topic for topic, session in sessions.items() if connection.execute(self._sql[_STOPPING], (session,)).fetchone()}

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
