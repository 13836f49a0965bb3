"""The store of records in a file. Its hot operations (fast paths) decide by headers alone, without decoding bodies."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, TypeVar

from taskflow.broker.engine import handover
from taskflow.broker.engine.records import READY, RUNNING, SUCCEEDED, Flag, Kind, Type
from taskflow.broker.engine.seam import KEEP, Claimed, Effect, Ended, HandedOver, Operation, Put, Record, Ref, Run, awaits_nothing, dispatch
from taskflow.broker.sqlite.changes import new_rev
from taskflow.broker.sqlite.counts import READY_QUEUES
from taskflow.broker.sqlite.maintenance import MaintainedRecords
from taskflow.broker.sqlite.queries import Packing, read_rows, record_packing, rev_of
from taskflow.broker.sqlite.statements import Statements, change_rows, filled_up, insert_rows
from taskflow.broker.sqlite.tables import PARTS
from taskflow.model.clock import Clock
from taskflow.model.flow import result_note

T = TypeVar("T")

MAX_ANSWERED: Final = 64 << 20
"""The maximum total size in bytes of the payloads in one answer to a claim. The next request gets further jobs."""

_MIN_QUEUES: Final = 32
"""The minimum number of queues to read at once."""


REQUEST_BYTES: Final = 8

MAX_REMEMBERED: Final = 256
"""The number of claims whose queues a store remembers, so that counting the ends of their jobs takes no extra statement."""

ADD: Final = """\
INSERT INTO "~jobs" (id, rev, flags, priority, queue, job, created_at, due_at, expires_at, sent, content)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ... ON CONFLICT (id) DO NOTHING"""

IDS: Final = Packing([("id", Type.BYTES)])
ADDED: Final = """\
WITH wanted (id) AS (VALUES (?) ...) SELECT @ FROM wanted CROSS JOIN "~jobs" AS r ON r.id = wanted.id WHERE r.rev = ?"""

TAKE_REQUEST: Final = 'UPDATE "~sessions" SET request = ? WHERE id = ? AND dead_at IS NULL AND request < ? RETURNING name'

CLAIMED: Final = Packing(
    [
        *(("falling_priority", Type.SMALL), ("due_at", Type.NUMBER), ("seq", Type.NUMBER), ("flags", Type.SMALL), ("priority", Type.SMALL)),
        *(("queue", Type.NAME), ("job", Type.NAME), ("created_at", Type.NUMBER), ("expires_at", Type.NUMBER)),
        *(("epoch", Type.NUMBER), ("since", Type.NUMBER), ("id", Type.BYTES), *((part, Type.BYTES) for part in PARTS)),
    ]
)
FIRST_READY: Final = """\
SELECT @
FROM (
  SELECT seq AS chosen FROM "~jobs" AS r INDEXED BY "~jobs_ready"
  WHERE status = 2 AND queue = ? AND NOT EXISTS (SELECT 1 FROM "~queues" WHERE id = CAST(? AS BLOB))
    AND (expires_at IS NULL OR expires_at > ?)
  ORDER BY falling_priority, due_at, seq LIMIT ?
) CROSS JOIN "~jobs" AS r ON r.seq = chosen"""

ALL_READY: Final = """\
WITH wanted (queue) AS (VALUES (?) ...)
SELECT @
FROM (
  SELECT seq AS chosen
  FROM wanted CROSS JOIN "~jobs" AS r INDEXED BY "~jobs_ready" ON status = 2 AND r.queue = wanted.queue
  WHERE NOT EXISTS (SELECT 1 FROM "~queues" WHERE id = CAST(r.queue AS BLOB)) AND (expires_at IS NULL OR expires_at > ?)
  LIMIT ?
) CROSS JOIN "~jobs" AS r ON r.seq = chosen"""

MAX_EPOCH: Final = (1 << 53) - 1
"""Before a claim increments it, a larger stored epoch is lowered to this one, to stay in 64 bits. Only other programs write those."""

LEASE: Final = f"""\
WITH leased (seq, claim) AS (VALUES (?, ?) ...)
UPDATE "~jobs" AS r SET
  status = 3, epoch = min(epoch, {MAX_EPOCH}) + 1, claim = leased.claim, rev = ?, session = ?, claimed_at = ?,
  claimed_steady = ?, worker = ?,
  started_at = NULL
FROM leased WHERE r.seq = leased.seq"""

LEASES: Final = """\
SELECT @ FROM (
  SELECT seq AS chosen FROM "~jobs" INDEXED BY "~jobs_leases" WHERE status = 3 AND session = ? AND claim >= ? AND claim <= ? LIMIT ?
) CROSS JOIN "~jobs" AS r ON r.seq = chosen"""

NUMBER_OF_READY_QUEUES: Final = """SELECT count(*) FROM "~counted" INDEXED BY "~counted_ready" WHERE what = '=2' AND n > 0"""

_SUCCEED: Final = f"""\
WITH run (session, claim, id, epoch, settled, started_at, fade_at, result, key) AS (VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ...)
UPDATE "~jobs" AS r INDEXED BY "~jobs_leases" SET
  status = 4, session = NULL, claim = NULL, settled = run.settled, started_at = run.started_at, fade_at = run.fade_at,
  content = run.result, rev = ?, ended_at = ?
FROM run
WHERE r.status = 3 AND r.session = run.session AND r.claim = run.claim AND r.id = run.id AND r.epoch = run.epoch
  AND r.flags & {Flag.TIES & ~Flag.KEYED} = @awaited
  AND (r.flags & {Flag.KEYED} = 0 OR EXISTS (SELECT 1 FROM "~keys" AS k WHERE k.id = run.key AND k.holder = r.id AND k.next IS NULL))"""

SUCCEED: Final = _SUCCEED.replace("@awaited", "0")
_HAS_NO_NOTE: Final = 'NOT EXISTS (SELECT 1 FROM "~notes" AS n WHERE n.id = run.note)'
SUCCEED_AWAITED: Final = (
    _SUCCEED.replace("@awaited", f"{Flag.AWAITED} AND {_HAS_NO_NOTE}").replace("key) AS", "key, note) AS").replace("?) ...", "?, ?) ...")
)

FREE_KEYS: Final = """\
DELETE FROM "~keys" WHERE id IN (VALUES (?) ...) AND next IS NULL AND EXISTS (
  SELECT 1 FROM "~jobs" AS r WHERE r.id = holder AND r.rev = ?
)"""


class SqliteStore(MaintainedRecords):
    """The complete store, over one connection."""

    def __init__(self, connection: sqlite3.Connection, sql: Statements, clock: Clock, capacity: int | None) -> None:
        super().__init__(connection, sql, clock, capacity)
        self._leased_from: dict[tuple[bytes, bytes], str] = {}

    def drive(self, operation: Operation[T]) -> T:
        """Run an operation of the engine, and return its answer."""
        self.forget()
        try:
            effect = next(operation)
            while True:
                effect = operation.send(self.perform(effect))
        except StopIteration as end:
            answer: T = end.value
            return answer
        finally:
            operation.close()

    def perform(self, effect: Effect) -> Any:
        """Perform a store call that an operation yielded, and return the answer."""
        return dispatch(self, effect)

    # --- add -------------------------------------------------------------------------------------------------

    def add(self, jobs: Sequence[Put]) -> list[bool] | str:
        self.forget()
        rev, now = new_rev(), self.clock.wall()
        rows = [_added_row(put, put.header, rev, now) for put in jobs]
        if self._capacity is not None:
            known = self.records([put.ref for put in jobs])
            message = self.room_for(len(jobs) - len(known))
            if message is not None:
                return message
        if insert_rows(self.connection, self.sql, ADD, rows) == len(rows):
            new, are_new = rows, [True] * len(rows)
        else:
            added = set[bytes]()
            for size, values in filled_up([(row[0],) for row in rows]):
                found = read_rows(self.connection, self.sql, ADDED, IDS, (*values, rev), size)
                added.update(row[0] for row in found)
            new, are_new = [row for row in rows if row[0] in added], [row[0] in added for row in rows]
        for queue, number in Counter([row[4] for row in new]).items():
            self.count(queue, "enqueue", number)
            self.count_move(queue, None, READY, number)
            self.announcement.ready[queue] += number
        return are_new

    # --- claim -----------------------------------------------------------------------------------------------

    def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> Claimed | None:
        self.forget()
        now = self.clock.wall()
        taken = self.connection.execute(self.sql[TAKE_REQUEST], (request, session, request)).fetchall()
        if not taken:
            return self._repeat(session, request, limit, now)
        rev, found, seqs, size = new_rev(), list[Record](), list[int](), 0
        token, prefix = rev_of(rev), request.to_bytes(8, "big")
        for rows in self._in_turn(queues, request, now, limit, found):
            for row in rows:
                record = self._leased(row, token, session, prefix + len(found).to_bytes(4, "big"))
                size += len(record.content or b"")
                if size > MAX_ANSWERED and found:
                    limit = 0
                    break
                found.append(record)
                seqs.append(row[2])
            if len(found) >= limit:
                break
        if found:
            self._lease(seqs, rev, session, str(taken[0][0]), now, found)
        return Claimed(found, now)

    def _in_turn(self, queues: Sequence[str], request: int, now: int, limit: int, found: Sequence[Record]) -> Iterator[list[list[Any]]]:
        """Yield the columns of READY jobs, queue by queue. The caller adds the jobs that it takes to `found`.

        Without queues, one statement reads all queues that the claim empties.
        """
        for queue in dict.fromkeys(queues):
            yield self._first_ready(queue, now, limit - len(found))
        if queues:
            return
        together, expected = list[str](), 0
        for queue, number in self._ready_queues(request, limit):
            left = limit - len(found)
            together.append(queue)
            expected += number
            if expected < left:
                continue
            last = together.pop() if expected > left else None
            yield self._all_ready(together, now, left)
            if last is not None:
                yield self._first_ready(last, now, limit - len(found))
            together, expected = [], 0
        yield self._all_ready(together, now, limit - len(found))

    def _first_ready(self, queue: str, now: int, limit: int) -> list[list[Any]]:
        """Return the columns of a queue's first READY jobs, or none if the queue is paused."""
        rows = read_rows(self.connection, self.sql, FIRST_READY, CLAIMED, (queue, queue, now, max(0, limit)))
        rows.sort(key=_place)
        return rows

    def _all_ready(self, queues: Sequence[str], now: int, limit: int) -> list[list[Any]]:
        """Return the columns of up to `limit` READY jobs of these queues, queue by queue."""
        if len(queues) < 2:
            return [row for queue in queues for row in self._first_ready(queue, now, limit)]
        places = {queue: number for number, queue in enumerate(queues)}
        rows = list[list[Any]]()
        for size, values in filled_up([(queue,) for queue in queues]):
            rows += read_rows(self.connection, self.sql, ALL_READY, CLAIMED, (*values, now, limit), size)
        rows.sort(key=lambda row: (places.get(row[5], len(places)), *_place(row)))
        return rows[:limit]

    def _leased(self, row: list[Any], rev: bytes, session: bytes, claim: bytes) -> Record:
        _, due_at, _, flags, priority, queue, job, created_at, expires_at, epoch, since, job_id, sent, state, content, *is_long = row
        header = {
            "flags": flags,
            "priority": priority,
            "queue": queue,
            "job": job,
            "created_at": created_at,
            "due_at": due_at,
            "since": since,
            "expires_at": expires_at,
            "epoch": min(epoch, MAX_EPOCH) + 1,
            "session": session,
            "claim": claim,
        }
        ref = Ref(Kind.JOB, job_id)
        if is_long:
            return self.records([ref], with_content=True)[ref]._replace(rev=rev, header=header)
        return Record(ref, rev, header, sent, state, content)

    def _lease(self, seqs: Sequence[int], rev: int, session: bytes, worker: str, now: int, found: Sequence[Record]) -> None:
        rows = [(seq, record.header["claim"]) for seq, record in zip(seqs, found, strict=True)]
        change_rows(self.connection, self.sql, LEASE, rows, (rev, session, now, self.clock.steady(), worker))
        queues = Counter([record.header["queue"] for record in found])
        for queue, number in queues.items():
            self.count(queue, "claim", number)
            self.count_move(queue, READY, RUNNING, number)
        if len(queues) == 1:
            self._leased_from[session, found[0].header["claim"][:REQUEST_BYTES]] = found[0].header["queue"]
            if len(self._leased_from) > MAX_REMEMBERED:
                del self._leased_from[next(iter(self._leased_from))]

    def _ready_queues(self, request: int, limit: int) -> Iterator[tuple[str, int]]:
        """Yield the queues that have READY jobs, with the number of these jobs, starting at a different queue with each request. Only as
        many queues are read as the claim needs."""
        self.flush()
        [(number,)] = self.connection.execute(self.sql[NUMBER_OF_READY_QUEUES]).fetchall()
        first, at_once = request % max(1, number), max(limit, _MIN_QUEUES)
        for offset, most in ((first, number - first), (0, first)):
            while most > 0:
                yield from self.connection.execute(self.sql[READY_QUEUES], (min(most, at_once), offset)).fetchall()
                offset, most = offset + at_once, most - at_once

    def _repeat(self, session: bytes, request: int, limit: int, now: int) -> Claimed | None:
        """Answer a request that the session sent before. Return None if the session is unknown or dead."""
        ref = Ref(Kind.SESSION, session)
        known = self.records([ref]).get(ref)
        if known is None or known.header["dead_at"] is not None:
            return None
        if request < known.header["request"]:
            return Claimed([], now)
        prefix = request.to_bytes(8, "big")
        packing = record_packing(Kind.JOB, True)
        rows = read_rows(self.connection, self.sql, LEASES, packing, (session, prefix, prefix + b"\xff" * 4, limit))
        found = [packing.record(self.connection, self.sql, row) for row in rows]
        found.sort(key=lambda record: record.header["claim"])
        return Claimed([record._replace(header={name: record.header[name] for name in _LEASE_FIELDS}) for record in found], now)

    # --- succeed ---------------------------------------------------------------------------------------------

    def succeed(self, runs: Sequence[Run]) -> Ended:
        self.forget()
        rev, now = new_rev(), self.clock.wall()
        fences = [epoch.to_bytes(8, "big") + session + claim + b"\0" for _, epoch, session, claim, *_ in runs]
        rows = [
            (session, claim, job_id, epoch, fence, now - ran_for, now + keep_for, result, key)
            for fence, (job_id, epoch, session, claim, result, ran_for, keep_for, key, *_) in zip(fences, runs, strict=True)
        ]
        before = self.connection.total_changes
        plain = [row for row, run in zip(rows, runs, strict=True) if run.awaited_by is None]
        change_rows(self.connection, self.sql, SUCCEED, plain, (rev, now))
        if len(plain) < len(rows):
            tied = [(*row, run.note) for row, run in zip(rows, runs, strict=True) if run.awaited_by is not None]
            change_rows(self.connection, self.sql, SUCCEED_AWAITED, tied, (rev, now))
        ended = self.connection.total_changes - before
        keys = [(run.key,) for run in runs if run.key is not None]
        change_rows(self.connection, self.sql, FREE_KEYS, keys, (rev,))
        queues = [self._leased_from.get((run.session, run.claim[:REQUEST_BYTES])) for run in runs]
        answers: list[bool | None] = [True] * len(runs)
        if ended < len(runs) or None in queues:
            queues = self._find_ended(runs, fences, rev, answers)
        self.announcement.ended.update([run.id for run, queue in zip(runs, queues, strict=True) if queue is not None])
        self._pass_on([run for run, queue in zip(runs, queues, strict=True) if queue is not None and run.awaited_by is not None], rev)
        for queue, number in Counter(queues).items():
            if queue is not None:
                self.count(queue, "succeed", number)
                self.count_move(queue, RUNNING, SUCCEEDED, number)
        refs = {Ref(Kind.JOB, run.awaited_by): None for run in runs if run.awaited_by is not None}
        found = self.records(refs) if refs else {}
        return Ended(answers, [ref.id for ref in refs if ref not in found or awaits_nothing(found[ref].header)])

    def hand_over(self, runs: Sequence[Run], gate_ids: Sequence[bytes]) -> HandedOver:
        return handover.by_step(self.perform, runs, gate_ids)

    def _pass_on(self, runs: Sequence[Run], rev: int) -> None:
        """Store the results of ended runs as notes for the jobs that await them, and count the ends in the `awaits` of these jobs."""
        notes = [(run.note, rev, len(run.result) + 1, result_note(run.result)) for run in runs if run.note]
        insert_rows(self.connection, self.sql, 'INSERT INTO "~notes" (id, rev, size, state) VALUES (?, ?, ?, ?) ...', notes)
        ends = Counter([run.awaited_by for run in runs if run.awaited_by is not None])
        self.add_numbers({(Kind.JOB, "awaits", job_id): -number for job_id, number in ends.items()})

    def _find_ended(self, runs: Sequence[Run], fences: Sequence[bytes], rev: int, answers: list[bool | None]) -> list[str | None]:
        """Return the queue of each job that this call ended with the revision `rev`, and None for the others. Also correct `answers`."""
        known, token, queues = self.records([Ref(Kind.JOB, run.id) for run in runs]), rev_of(rev), list[str | None]()
        counted = set[bytes]()  # the same run may be given twice
        for number, (run, fence) in enumerate(zip(runs, fences, strict=True)):
            record = known.get(Ref(Kind.JOB, run.id))
            header = {} if record is None else record.header
            is_ended = record is not None and record.rev == token and header["settled"] == fence
            queues.append(header["queue"] if is_ended and run.id not in counted else None)
            counted.add(run.id)
            if record is None or is_ended:
                answers[number] = is_ended
            elif (header["status"], header["epoch"], header["session"], header["claim"]) == (RUNNING, run.epoch, run.session, run.claim):
                answers[number] = None
            else:
                answers[number] = header["settled"] == fence
        return queues


_place: Final[Callable[[list[Any]], tuple[int, int, int]]] = itemgetter(0, 1, 2)
_LEASE_FIELDS: Final = (*("flags", "priority", "queue", "job", "created_at", "due_at", "since", "expires_at", "epoch", "session", "claim"),)


def _added_row(put: Put, header: Mapping[str, Any], rev: int, now: int) -> tuple[Any, ...]:
    expires_at = header.get("expires_at")
    return (
        put.ref.id,
        rev,
        header.get("flags", 0),
        header.get("priority", 0),
        header["queue"],
        header["job"],
        now,
        now,
        None if expires_at is None else now + expires_at,
        None if put.sent is KEEP else put.sent,
        None if put.content is KEEP else put.content,
    )
